"""DAPO's soft punishment of answers that come near the longest (arXiv 2503.14476, equation 13)."""


def overlong_penalty(length: int, longest: int, margin: int) -> float:
    """What is added to the reward of an answer: 0 to -1.

    Args:
        length: tokens of the answer.
        longest: tokens that one may have.
        margin: of these the last, over which the punishment grows.
    """
    if margin == 0:
        return 0.0
    beyond = length - (longest - margin)
    return -min(max(beyond, 0) / margin, 1.0)
