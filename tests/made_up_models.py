"""Models of measures that nobody may ship, made up: right in form, meaningless in value."""

import numpy as np
import torch


def pristine_model(seed: int = 0) -> dict[str, torch.Tensor]:
    """A made-up model with a covariance of full rank."""
    generator = np.random.default_rng(seed)
    root = generator.normal(size=(36, 36))
    return {
        "mu_pris_param": torch.from_numpy(generator.uniform(0, 2, (1, 36))),
        "cov_pris_param": torch.from_numpy(root @ root.T + 0.1 * np.eye(36)),
    }


INPUTS = (18, 45, 75)


def a_tree(generator: np.random.Generator, inputs: int, depth: int, nodes: int) -> dict[str, np.ndarray]:
    """One tree's columns, as regRF_train makes them: a node's daughters come after it, a leaf has none."""
    tree = {name: np.zeros(nodes) for name in ("lDau", "rDau", "upper", "avnode", "mbest")}
    tree["avnode"][0] = generator.uniform(0, 10)
    used, level = 1, [0]
    for _ in range(depth):
        level_after = []
        for node in level:
            if used + 2 > nodes or generator.random() < 0.2:
                continue
            tree["lDau"][node], tree["rDau"][node] = used + 1, used + 2
            tree["mbest"][node] = generator.integers(1, inputs + 1)
            tree["upper"][node] = generator.uniform(0, 2)
            tree["avnode"][used : used + 2] = generator.uniform(0, 10, 2)
            level_after += [used, used + 1]
            used += 2
        level = level_after
    return tree


def a_model(seed: int = 0, trees: int = 25, nodes: int = 40) -> dict[str, object]:
    """The struct of the authors' model.mat, made up."""
    generator = np.random.default_rng(seed)
    forests = np.empty((3, 1), dtype=object)
    for number, inputs in enumerate(INPUTS):
        grown = [a_tree(generator, inputs, 5, nodes) for _ in range(trees)]
        forest = {name: np.stack([tree[name] for tree in grown], axis=1) for name in grown[0]}
        forest |= {name: forest[name].astype(np.int32) for name in ("lDau", "rDau", "mbest")}
        forests[number, 0] = forest | {"ntree": trees, "nrnodes": nodes, "coef": np.zeros((0, 0))}
    return {"rf": forests, "linear": generator.normal(size=(4, 1))}
