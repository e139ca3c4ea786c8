"""The machine under a run: devices, processes, threads, the console, files that appear whole."""
