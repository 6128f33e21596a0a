"""A finished run in the forms that notebooks and other libraries take."""
