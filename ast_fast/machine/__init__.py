"""The machine under a run: devices, processes, the console, timing, atomic files."""
