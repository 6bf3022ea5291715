"""Scripts of the developers; a package, so that tests can import what is more than one file."""
