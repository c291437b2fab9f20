"""A cluster on virtual time: simulated engines under the production router.

`profiles` says how fast engines are, `cache` and `engine` how they behave, `workloads` what is asked of them, `cluster`
runs them under `Router.pick` with the production index and load accounting, `results` sums up, `report` shows it.
"""
