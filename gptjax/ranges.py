"""The ranges that numbers of a configuration lie in, as annotated types."""

from typing import Annotated

from pydantic import Field

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
AboveZero = Annotated[float, Field(gt=0, le=1)]
UpToHalf = Annotated[float, Field(ge=0, le=0.5)]
Weights = dict[str, Positive]
SomeWeights = Annotated[Weights, Field(min_length=1)]
