"""The paper's theory, evaluated: the toy network, Theorems 1 and 2, the four properties.

The network is l neurons in a row, g(x) = f[theta^l f[theta^(l-1) ... f[theta^1 x]]], of Section 2 of L. Ven
and J. Lederer, arXiv 2106.02260. Everything is float64 and takes any number of draws at once; `exact`
evaluates the same in arbitrary precision. README.md in this folder lists where the text is wrong.

- theta: parameters (..., l), theta^1 first; anything that `torch.as_tensor` takes.
- x, d, r: inputs, h'[y - g(x)] and the L2 penalty's tuning parameter, at least 0; their shapes broadcast
  with theta's leading dimensions. For least squares d is 2 (y - g(x)).
- alpha: the scale; f_alpha(z) = alpha f(z / alpha), eq. (1), or alpha f(z) if `naive`.
- function: name of f, a key of `sigscale.FUNCTIONS`. The theorems are stated for tanh.

Results are float64 tensors on theta's device. An argument that is not a real number, or out of range,
raises a TypeError or ValueError.
"""

from . import exact as exact
from ._domain import Boundary as Boundary
from ._domain import Counterexample as Counterexample
from ._domain import Search as Search
from ._domain import theorem_1_boundary as theorem_1_boundary
from ._domain import theorem_1_domain as theorem_1_domain
from ._network import Identity as Identity
from ._network import gradient as gradient
from ._network import identity as identity
from ._network import network as network
from ._network import partial as partial
from ._theorems import Properties as Properties
from ._theorems import Theorem1 as Theorem1
from ._theorems import Theorem2 as Theorem2
from ._theorems import properties as properties
from ._theorems import smallest_parameter as smallest_parameter
from ._theorems import theorem_1 as theorem_1
from ._theorems import theorem_2 as theorem_2
