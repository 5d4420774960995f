"""The theory of the paper as something one can run: the toy network, Theorems 1 and 2, the four properties.

The network is l neurons in a row, g(x) = f[theta^l f[theta^(l-1) ... f[theta^1 x]]], of Section 2 of
L. Ven and J. Lederer, arXiv 2106.02260. Everything is float64 and takes any number of draws at once;
`exact` evaluates the same in arbitrary precision.

Where the text and this package differ:

- f^0 is x, not 1, and the derivative of h[y - g(x)] has the sign of -d, d = h'[y - g(x)].
- Theorem 1 is stated for every t in (0, 1) and holds up to t = 0.623: `theorem_1_boundary`, with proof.
- Theorem 1 is about tanh; for arctan, softsign and the logistic function its first claim fails at small t.
- In Theorem 2's network, scaling delays saturation by log(alpha) / log(1.5) layers, and from depth 2 on
  naive scaling does not make gradients explode: `theorem_2`.
- The four properties are not all met by the functions that are said to meet them: `properties`.
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
from ._properties import Properties as Properties
from ._properties import properties as properties
from ._theorems import Theorem1 as Theorem1
from ._theorems import Theorem2 as Theorem2
from ._theorems import smallest_parameter as smallest_parameter
from ._theorems import theorem_1 as theorem_1
from ._theorems import theorem_2 as theorem_2
