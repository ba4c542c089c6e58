"""What a rank's memory holds, by part and moment (`ranks.py`).

`tensors.py` says which parameters a chunk of the model has, `states.py` what they cost in weights,
gradients, optimizer states and FP8 copies, to the byte. `rows.py`, `local_rows.py` and `te_rows.py`
are the tables of activations, `activations.py` adds them up by stage, `peak.py` by schedule.
`buffers.py` has the rest: tokens on their way, saving, CUDA and NCCL.
"""
