"""The endpoint namespaces of a session, one file each, strangers to each other."""
