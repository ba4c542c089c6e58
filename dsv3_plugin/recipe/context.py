"""How attention is divided where several ranks share a sequence (`parallel.context`)."""


def head_groups(heads: int, context: int) -> int:
    """Into how many groups a rank's heads are divided, which attend one after the other.

    So many that keys and values of the whole sequence take no more for one group than those of the
    rank's own tokens for all heads, which it would hold without context parallelism as well: as
    many groups as ranks, or the next number above that divides the heads.
    """
    return next((n for n in range(context, heads) if heads % n == 0), heads)
