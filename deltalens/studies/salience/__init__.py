"""Which weights salience metrics choose, where they lie, and how far the choices agree."""
