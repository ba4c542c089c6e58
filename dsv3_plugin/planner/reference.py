"""`docs/clusters.md`: every key of a cluster's file, printed from the schema itself.

`python -m dsv3_plugin.planner.reference > docs/clusters.md` writes it; a test says when it is
stale.
"""

from dsv3_plugin.planner.cluster import LEAST, LEAST_SHARE, MOST, Cluster, Sourced, shipped_clusters
from dsv3_plugin.recipe.key_tables import KeyTables, one_line

_HEAD = """\
# Clusters

A cluster's file says in YAML what [the planner](planner.md) and [the rehearsal](rehearsal.md)
reckon with: devices, how they are connected, which share of their peaks is reached, and what they
cost. A recipe names one (`cluster: h800`), `--cluster` another. With dsv3 come
{shipped}
([`launch/clusters/`](../launch/clusters), each share with its source); a file of your own is named
by its path.

An unknown key is refused with the nearest there is. Amounts lie between {least:g} and {most:g},
shares between {share:g} and 1.

This page is printed by `python -m dsv3_plugin.planner.reference`.
"""

_TABLES = KeyTables({"name": "as the file"}, apart={Sourced: "A share"})


def page() -> str:
    """The whole page, as Markdown."""
    head = _HEAD.format(
        shipped=", ".join(f"`{name}`" for name in shipped_clusters()),
        least=LEAST, most=MOST, share=LEAST_SHARE,
    )  # fmt: skip
    keys = f"## Keys\n\n{one_line(Cluster.__doc__)}\n"
    return "\n".join(
        [head, keys, *_TABLES.table(Cluster), *_TABLES.nested(Cluster), *_TABLES.told_apart()]
    )


if __name__ == "__main__":
    print(page(), end="")
