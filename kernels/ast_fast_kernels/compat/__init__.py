"""Drop-ins for other libraries' objects: a module each, which needs that library only when used."""
