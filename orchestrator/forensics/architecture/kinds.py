"""The kinds of matrices of a layer, and the positions of its norms."""

ATTENTION = ("q", "k", "v", "o")
FFN = ("gate", "up", "down")
KINDS = ATTENTION + FFN
BRANCHES = {"attention": ATTENTION, "ffn": FFN}
PLACES = ("pre_attention", "post_attention", "pre_ffn", "post_ffn")
BEHIND = dict.fromkeys(("q", "k", "v"), "pre_attention") | dict.fromkeys(("gate", "up"), "pre_ffn")  # read after it
