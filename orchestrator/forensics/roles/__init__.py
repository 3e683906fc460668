"""Measures → roles: the features that vote (`routing`), their scores (`scoring`), letters and colours (`palette`)."""
