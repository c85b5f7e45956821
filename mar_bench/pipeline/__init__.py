"""From runs to records: planning (graph, plan, cost), files (store) and execution.

``execute`` does the work of one job; ``run_local`` runs many, on this machine or on several ranks.
Nothing here depends on Slurm or tables; graph, plan, cost and store never import torch. Start with ``graph``."""
