"""What a run takes before it is begun: work, time, room and money (docs/scale.md).

`size` says how much text there is, `model` what each stage takes for it. The rates, `rates.json`, were measured by
benchmarks/scale.py, with the same `model`.
"""
