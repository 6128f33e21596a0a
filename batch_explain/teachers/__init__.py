"""Teachers: the fitted models, split into what featurizes (raw -> engineered) and what predicts from that.

One object does both, because a pipeline's own steps decide where the cut is, and because the featurizer must run
once a batch for the prediction and for the explanation.
"""
