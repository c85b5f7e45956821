"""From runs to records: what is planned (graph, plan, cost), where it lies (store), and what executes it.

``execute`` does the work of one job; ``run_local`` schedules jobs on this machine, ``run_ddp`` on several ranks.
Nothing here knows Slurm or tables; graph, plan, cost and store never import torch. Start with ``graph``."""
