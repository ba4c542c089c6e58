"""What a rank's memory holds: model states, activations, buffers, and their sum by part and moment.

`tensors.py` says which tensors a chunk of the model is made of, `states.py` what they cost in
weights, gradients, optimizer states and FP8 copies, to the byte.
"""
