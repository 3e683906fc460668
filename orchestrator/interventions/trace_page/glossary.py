"""The definitions on the page of a trace."""

from __future__ import annotations

from orchestrator.common.web.pages import Term

GLOSSARY = {
    "lens": Term(
        "logit lens",
        "What the model's final norm and head make of the residual stream after a layer, as if it were the last one. "
        "After the last layer it is the model's own prediction.",
    ),
    "answer": Term(
        "answer",
        "The token that the model itself ranks first after the text. It stays from the first layer on after which the "
        "lens ranks it first at every later layer too.",
    ),
    "write": Term(
        "write",
        "The norm of what attention or FFN adds to the residual stream at a token, over the norm of the stream that "
        "the layer reads there.",
    ),
    "attribution": Term(
        "adds to the answer",
        "The last residual stream is the sum of the embedding and of all that attention and FFNs wrote. With the "
        "divisor of the final norm held fixed, the answer's logit is the sum of what each of them adds to it, here "
        "above the mean of all logits, which moves no probability. It is the direct effect: what later layers make of "
        "a write counts as theirs.",
    ),
    "position": Term(
        "FFN position",
        "An inner coordinate of the FFN, read as a memory: its key is the token that opens it, its value what it then "
        "writes, named by the tokens whose logits that raises most. Saturated: far louder in its weights than the rest "
        "of the layer. Active: writes most at this text. Answer: adds most to the answer.",
    ),
    "band": Term(
        "early, middle, late",
        "The middle begins with the layer after which the divergence of the lens from the model, as a mean over "
        "tokens, is and stays at most half of the most that any layer leaves; the late band begins with the layer "
        "after which the lens ranks the model's own prediction first, for good, at half of the tokens.",
    ),
    "divergence": Term("divergence", "KL(model ‖ lens) in nats: 0 where the lens says what the model says."),
    "role": Term("role", "Hub, damper, passthrough or specialist, read from the layer's weights; a dash is none."),
}
