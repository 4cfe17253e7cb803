"""The limit of a link: a bare AF_XDP generator against a bare AF_XDP reflector."""
