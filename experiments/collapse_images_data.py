"""Images as regression on centred one-hot labels, and mixtures of real and synthetic labels.

Letters: N images, P pixels, O classes, n images of a training set, S seeds.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import NDArray

from lmnoise import keys
from lmnoise.data.images import noisy_labels, open_images
from lmnoise.errors import UserError

type Array = NDArray[np.float32]

KINDS = {"network": "labels of a weaker network", "flips": "flipped labels"}


@dataclasses.dataclass(frozen=True)
class Pictures:
    """A set of images.

    Attributes:
      classes: O.
      train_NP, test_NP: pixels less the mean training image, of mean squared length P.
      train_NO, test_NO: one-hot labels less 1/O.
      train_N, test_N: labels.
    """

    name: str
    classes: int
    train_NP: Array
    test_NP: Array
    train_N: NDArray[np.int32]
    test_N: NDArray[np.int32]

    @property
    def train_NO(self) -> Array:
        return targets(self.train_N, self.classes)

    @property
    def test_NO(self) -> Array:
        return targets(self.test_N, self.classes)


def targets(label_N: NDArray[np.int32], classes: int) -> Array:
    """One-hot labels less 1/O: without classes that are more frequent no constant is to learn."""
    return np.eye(classes, dtype=np.float32)[label_N] - np.float32(1 / classes)


@functools.cache
def pictures(name: str, data_dir: str, pool: int) -> Pictures:
    """The images of this name, means over squares of `pool` pixels a side.

    They are shuffled and split anew, into parts of the sizes that the package has: theory knows
    one law of images, and the packages' own two parts are not of one (errors on the test images
    of MNIST are some 4 % below those on training images that were held out).

    Raises:
      UserError: see `open_images`, or squares that do not divide the images.
    """
    found = open_images(name, data_dir)
    height, width = found.train.x.shape[1:]
    if height % pool or width % pool:
        raise UserError(f"config.pool {pool} does not divide the images of {name}, {height} wide")

    def pooled(x):
        squares = x.reshape(len(x), height // pool, pool, width // pool, pool)
        return squares.mean((2, 4), dtype=np.float32).reshape(len(x), -1)

    both_NP = np.concatenate([pooled(found.train.x), pooled(found.test.x)])
    both_N = np.concatenate([found.train.label_N, found.test.label_N])
    order_N = host_generator(jax.random.key(0), name, "split").permutation(len(both_N))
    train_N, test_N = np.split(order_N, [len(found.train.x)])
    train_NP, test_NP = both_NP[train_N], both_NP[test_N]
    mean_1P = train_NP.mean(0, keepdims=True, dtype=np.float64).astype(np.float32)
    train_NP, test_NP = train_NP - mean_1P, test_NP - mean_1P
    scale = np.float32(np.sqrt(np.square(train_NP, dtype=np.float64).mean()))
    return Pictures(
        name,
        len(found.classes),
        train_NP / scale,
        test_NP / scale,
        both_N[train_N],
        both_N[test_N],
    )


@dataclasses.dataclass(frozen=True)
class Pool:
    """The images of one seed in the order in which training sets take them.

    The first `reserved` are for the network that makes synthetic labels; a training set of n is
    the next n, so that larger sets contain smaller ones.
    """

    pictures: Pictures
    seed: int
    reserved: int

    @functools.cached_property
    def order_N(self) -> NDArray[np.int64]:
        return self._generator("order").permutation(len(self.pictures.train_N))

    @property
    def teacher_rows(self) -> NDArray[np.int64]:
        return self.order_N[: self.reserved]

    def rows(self, n: int) -> NDArray[np.int64]:
        """The training images of a set of n.

        Raises:
          UserError: there are not as many.
        """
        if n > (most := len(self.order_N) - self.reserved):
            raise UserError(f"{self.pictures.name} has {most} images for training, not {n}")
        return self.order_N[self.reserved : self.reserved + n]

    def synthetic(self, n: int, share: float) -> NDArray[np.bool_]:
        """Which of n images are synthetic (n,): exactly `round(share n)`, in those of any larger
        share."""
        return self._generator("synthetic", n).permutation(n) < round(share * n)

    def flipped(self, n: int, wrong: float) -> Array:
        """Labels (n, O) of which exactly `round(wrong n)` are other classes."""
        label_N = self.pictures.train_N[self.rows(n)]
        noisy_N = noisy_labels(label_N, wrong, self.pictures.classes, self.seed)
        return targets(noisy_N, self.pictures.classes)

    def mixture(self, synthetic_NO: Array, share: float) -> Array:
        """Labels (n, O) of the first n images with a share of synthetic ones."""
        n = len(synthetic_NO)
        real_NO = targets(self.pictures.train_N[self.rows(n)], self.pictures.classes)
        return np.where(self.synthetic(n, share)[:, None], synthetic_NO, real_NO)

    def _generator(self, *purpose: str | int) -> np.random.Generator:
        return host_generator(jax.random.key(self.seed), self.pictures.name, *purpose)


def host_generator(key: jax.Array, *purpose: str | int) -> np.random.Generator:
    """Draws of NumPy, which compiles nothing for a new size, from a folded key."""
    return np.random.default_rng(np.asarray(jax.random.key_data(keys.fold(key, *purpose))))


def wrong_share(quality: float, classes: int) -> float:
    """The share of labels to flip for a shift of the mean label of squared length c^2.

    A flip to any of the other classes takes the mean label `q O / (O - 1)` of the way to the mean
    of all classes, a squared length of `q^2 O / (O - 1)`.
    """
    return float(np.sqrt(quality * (classes - 1) / classes))


def synthetic_labels(
    pool: Pool, n: int, kind: str, wrong: float, teacher: Callable[[Array], Array]
) -> Array:
    """The labels (n, O) that the images would have if all were synthetic.

    Args:
      kind: one of `KINDS`.
      wrong: share of flips.
      teacher: outputs (N, O) of the weaker network for images (N, P).
    """
    if kind == "flips":
        return pool.flipped(n, wrong)
    return teacher(pool.pictures.train_NP[pool.rows(n)])


def pools(config: ConfigDict, name: str) -> dict[int, Pool]:
    """The pool of every seed of a set of images."""
    own = pictures(name, config.data_dir, config.pool)
    return {seed: Pool(own, seed, config.teacher.examples) for seed in config.seeds}
