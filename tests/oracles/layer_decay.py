"""Learning rates and weight decay of MAE's fine-tuning, parameter by parameter."""


def recipe(names_and_shapes, depth, layer_decay, weight_decay):
    """Parameter name -> (learning rate relative to the head's, weight decay)."""
    found = {}
    for name, shape in names_and_shapes.items():
        if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
            layer = 0
        elif name.startswith("blocks."):
            layer = 1 + int(name[len("blocks.") :].split(".")[0])
        else:
            layer = depth + 1
        scale = 1.0
        for _ in range(depth + 1 - layer):
            scale *= layer_decay
        is_vector = len(shape) == 1
        is_token = name in ("cls_token", "pos_embed")
        found[name] = (scale, 0.0 if is_vector or is_token else weight_decay)
    return found
