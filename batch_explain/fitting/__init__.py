"""Making explainers: surrogates of fitted models, proved on rows that were held out."""
