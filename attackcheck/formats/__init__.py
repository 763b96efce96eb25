"""Files of networks, claims and models' outputs in other people's formats; nothing in a file is ever run unasked."""
