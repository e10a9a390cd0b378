"""Dr. Retina, a RetinaNet whose loss is chosen freely.

``config`` (settings), ``backbone``, ``anchors``, ``model`` (images to logits), ``targets`` (anchors and objects to
labels), ``objective`` (the loss of a batch), ``detections`` (logits to boxes), ``exported`` (the file of a trained
detector), ``starting_weights`` and ``weight_names`` (weights from ImageNet or another detector).
It knows nothing of files of data or of training. The rooms listed after it in CONTRIBUTING.md may import it.
"""
