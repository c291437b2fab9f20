"""What users get wrong about engines, found and explained: judged here, gathered and shown by app.

`facts` is what was seen, `catalogue` everything that can be wrong, with what it means and what mends it; `checks`
judge one engine, `stream_checks` its ranks, `fleet_checks` what only several engines show; `launch` words the remedies.

Invariant: a check is a pure function of facts, and says only what they show. A finding names a code of the catalogue.
"""
