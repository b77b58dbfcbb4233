"""Draft trees sized by what they are worth, for any drafting loop. Needs numpy and msgspec alone.

An engine of your own needs four things of this package:

1. `CostTable` and `Curve`: what a target forward and a drafting pass take on your device, measured.
2. `SpeculationController.plan` before a step: how to draft, or None to decode plainly.
3. `make_grower` in the drafting loop: which nodes to expand next, and at last which to verify.
4. `SpeculationController.observe` after the step: what was accepted and what everything took.

A table measured at 1 to 512 packed tokens, for batches 1 and 16; a drafting pass of 0.5 ms:

>>> import numpy as np
>>> from smart_serve.config import SpeculationConfig
>>> from smart_serve.speculation.controller import SpeculationController
>>> from smart_serve.speculation.step_observation import StepObservation
>>> from smart_serve.speculation.cost import CostTable, Curve
>>> from smart_serve.speculation.policies import make_grower
>>> one = Curve((1, 64, 512), (10.0, 11.0, 50.0))  # ms
>>> many = Curve((16, 64, 512), (11.0, 12.0, 51.0))
>>> costs = CostTable(batches=(1, 16), contexts=(512,), curves=((one,), (many,)))
>>> controller = SpeculationController(SpeculationConfig(), costs, Curve((1, 64), (0.5, 0.6)))

The drafter: for every node that is to be expanded, the most likely next tokens, best first. This
one is always 70 % sure:

>>> def children(num_nodes, top_k):
...     probs = 0.7 * 0.3 ** np.arange(top_k)
...     return np.tile(np.arange(top_k), (num_nodes, 1)), np.tile(np.log(probs), (num_nodes, 1))

One step of two sequences. `catch_up_rows` are the tokens that the drafter has not seen yet:

>>> plan = controller.plan("smart", batch=2, context=512.0, catch_up_rows=2)
>>> grower, num_nodes, layers = make_grower(plan, 2), 2, 0
>>> while num_nodes:
...     token_ids, log_probs = children(num_nodes, plan.top_k)
...     num_nodes = len(grower.add_layer(token_ids, log_probs))  # indices into [nodes * top_k]
...     layers += 1
>>> growth = grower.finish()
>>> forest = growth.forest  # verify these: flat, parents before children, row 0 is the root
>>> forest.problem(vocab_size=100, max_nodes=plan.max_nodes) is None
True
>>> forest.num_trees, bool(forest.num_nodes > 4), int(forest.parents[0])
(2, True, 0)

After verification (here the first node of each tree was right, and nothing below it):

>>> accepted = np.zeros(forest.num_nodes, bool)
>>> accepted[forest.offsets[:-1]] = True
>>> controller.observe(
...     StepObservation(
...         policy="smart", batch=2, context=512.0, forest=forest, accepted=accepted,
...         growth=growth, layer_rows=(2,) * layers, layer_ms=(0.5,) * layers,
...         verify_ms=10.4, step_ms=10.4 + 0.5 * layers + 0.3,
...     )
... )

A step that was decoded plainly is observed too, with `Forest.empty(2)` and `growth=None`. With an
acceptance that stays as low as here, or a batch that grows, the trees shrink until `plan` is None.

`smart_serve.speculation.sequoia` finds the best fixed tree for known acceptance rates:

>>> from smart_serve.speculation.sequoia import best_static_tree
>>> verify_ms = one.at(1.0 + np.arange(65))
>>> tree = best_static_tree((0.7, 0.12, 0.05), verify_ms, layer_ms=0.5, max_depth=6)
>>> tree[:3], bool(len(tree) > 8)
(((0,), (1,), (2,)), True)
"""
