"""What deltalens knows by name, each stated once: metrics, methods, kinds of studies, layer groups.
No torch here: code is referred to by name and loaded when it is used."""
