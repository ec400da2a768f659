"""From a network to one of fewer multiplications that says the same: whole channels go, or half of the weights.

```text
network ─ channel groups ─ importance on pictures ─ cheapest per multiplication saved ─ cut ─ norms' statistics
             ▲                                                                                      │
             └──────────────── next round ──────────────── recovered by its teacher ◄───────────────┘
```

`graph` says which channels go together, `importance` how much each matters, `costs` what it saves, `choose` which go;
`pruning` is the whole. `sparse` zeroes two weights of four, for TensorRT. `files` does it from file to file.
"""

from optimize.prune.costs import count_macs
from optimize.prune.graph import ChannelGroup, channel_groups
from optimize.prune.importance import IMPORTANCES, Importance, ImportanceName
from optimize.prune.pruning import Pruned, Round, prune_network
from optimize.prune.sparse import Sparsity, check_2_4, hold_2_4, sparsify_2_4

__all__ = [
    "IMPORTANCES",
    "ChannelGroup",
    "Importance",
    "ImportanceName",
    "Pruned",
    "Round",
    "Sparsity",
    "channel_groups",
    "check_2_4",
    "count_macs",
    "hold_2_4",
    "prune_network",
    "sparsify_2_4",
]
