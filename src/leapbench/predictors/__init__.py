"""One file per method; the name of the file is the name of the yaml and of the row in every table."""
