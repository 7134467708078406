"""Fitting a class whose features are in many places, in passes over them.

The places are this process or Spark's executors: :class:`Passes` is all that is known of them. What
comes back is a sum whose size does not follow the number of pictures, or a few numbers a picture.

=======================================  ======================================================
n pictures, D features of a row          subspaces from
=======================================  ======================================================
n up to D and up to 4,096                the rows themselves, which are less than a D x D matrix
D up to 4,096                            merged moments, and those of each fold
both above 4,096                         seeded subspace iteration
=======================================  ======================================================

The choice is that of :mod:`dfm_mlflow.core.solvers`, and so are the results up to rounding. Where
the iteration gives way to an exact solver, that one works on the rows, at most as many as features,
or on moments.
"""

from dfm_mlflow.passes.blocks import Block, HeldOutBlock, LocalPasses, Passes
from dfm_mlflow.passes.fit import fit_class_in_passes

__all__ = ["Block", "HeldOutBlock", "LocalPasses", "Passes", "fit_class_in_passes"]
