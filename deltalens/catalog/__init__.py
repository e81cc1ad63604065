"""Every fact that has a name, stated once: metrics, methods, kinds of studies. No torch here: code
is named, and loaded when it is used."""
