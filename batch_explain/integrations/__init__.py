"""Other platforms that are told of a run; nothing below this floor knows them."""
