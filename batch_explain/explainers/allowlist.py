"""What a pickle of a model or an explainer may name: everything else is refused by name, before it runs.

Each entry is a module and its names, exactly as a pickle spells them. No package is allowed as a whole, because most
hold something that runs, loads or imports what it is given. A name belongs here if a hostile file gains nothing by it:

- of a **class**: by making an instance without its ``__init__``, by setting its state in whatever way its own
  ``__setstate__`` does, and by its ``__del__``, ``__eq__`` and ``__hash__``;
- of a name that may be **called**: by calling it with any arguments;
- of a **function**: by a model that calls it on rows, with any other arguments.

Left out on purpose, because they load, run or remove what their state names, though models may hold them:

- ``scipy.stats`` distributions (``__setstate__`` runs text as code);
- ``azureml…WordEmbeddingsProvider``, ``Holidays``, ``EnsembleWrapper`` (open pickles),
  ``PretrainedTextDNNTransformer``, ``BiLSTMAttentionTransformer``, ``PretrainedDNNProvider``, Tabnet (open or download
  what torch opens);
- ``azureml…tf_wrappers`` (unpacks an archive), the cache stores (remove folders), ``ml_wrappers``' endpoint and OpenAI
  models;
- ``azureml…DeepScoringExplainer`` and its ``KerasSerializer`` (open a Keras model, which may hold code);
- ``pmdarima``, ``statsmodels``, ``prophet`` (``__setstate__`` opens files or pickles);
- ``lightgbm.Dataset`` and ``_InnerPredictor`` (free the pointer in their state); ``sklearn.callback`` (opens sockets);
- CatBoost (not looked into yet);
- ``joblib.Memory`` and memory maps, ``dateutil``'s ``tzfile``, old joblib's array files (open files);
- ``functools.partial``, ``operator``, ``types``, ``cloudpickle`` (any code).
"""

_DATES = (
    "BDay BMonthBegin BMonthEnd BQuarterBegin BQuarterEnd BYearBegin BYearEnd BusinessDay BusinessMonthBegin "
    "BusinessMonthEnd Day Hour Micro Milli Minute MonthBegin MonthEnd Nano QuarterBegin QuarterEnd Second Week "
    "YearBegin YearEnd"
)

_METRICS = (
    "BrayCurtis Canberra Chebyshev Dice Euclidean Hamming Haversine Jaccard Kulsinski Mahalanobis Manhattan Matching "
    "Minkowski RogersTanimoto RussellRao SEuclidean SokalMichener SokalSneath"
)
_DISTANCES = " ".join(f"{name}Distance{bits}" for name in _METRICS.split() for bits in ("", "32", "64"))

# Made without being called, then given their state.
CLASSES: dict[str, str] = {
    # Python
    "builtins": "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple",
    "collections": "OrderedDict",
    "joblib.numpy_pickle": "NumpyArrayWrapper",
    # numpy: array types, and the types of single values
    "numpy": (
        "bool_ bytes_ complex128 complex64 datetime64 float16 float32 float64 int16 int32 int64 int8 intc longlong "
        "matrix ndarray object_ str_ timedelta64 uint16 uint32 uint64 uint8 ulonglong vectorize void"
    ),
    "numpy.ma": "MaskedArray",
    "numpy.ma.core": "MaskedArray",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64 PCG64DXSM",
    "numpy.random._philox": "Philox",
    "numpy.random._sfc64": "SFC64",
    "numpy.random.bit_generator": "SeedSequence",
    # scipy: matrices, and the curves of fitted calibrations
    "scipy.interpolate._bsplines": "BSpline _BSpline",
    "scipy.sparse._arrays": "bsr_array coo_array csc_array csr_array dia_array dok_array lil_array",
    "scipy.sparse._bsr": "bsr_array bsr_matrix",
    "scipy.sparse._coo": "coo_array coo_matrix",
    "scipy.sparse._csc": "csc_array csc_matrix",
    "scipy.sparse._csr": "csr_array csr_matrix",
    "scipy.sparse._dia": "dia_array dia_matrix",
    "scipy.sparse._dok": "dok_array dok_matrix",
    "scipy.sparse._lil": "lil_array lil_matrix",
    "scipy.sparse.coo": "coo_matrix",
    "scipy.sparse.csc": "csc_matrix",
    "scipy.sparse.csr": "csr_matrix",
    # pandas
    "pandas": (
        "BooleanDtype Categorical CategoricalDtype CategoricalIndex DataFrame DatetimeIndex DatetimeTZDtype "
        "Float32Dtype Float64Dtype Index Int16Dtype Int32Dtype Int64Dtype Int8Dtype IntervalDtype IntervalIndex "
        "MultiIndex PeriodIndex RangeIndex Series SparseDtype TimedeltaIndex UInt16Dtype UInt32Dtype UInt64Dtype "
        "UInt8Dtype"
    ),
    "pandas.arrays": (
        "ArrowStringArray BooleanArray DatetimeArray FloatingArray IntegerArray IntervalArray PeriodArray SparseArray "
        "StringArray TimedeltaArray"
    ),
    "pandas.core.arrays.boolean": "BooleanArray BooleanDtype",
    "pandas.core.arrays.categorical": "Categorical",
    "pandas.core.arrays.datetimes": "DatetimeArray",
    "pandas.core.arrays.floating": "Float32Dtype Float64Dtype FloatingArray",
    "pandas.core.arrays.integer": (
        "Int16Dtype Int32Dtype Int64Dtype Int8Dtype IntegerArray UInt16Dtype UInt32Dtype UInt64Dtype UInt8Dtype"
    ),
    "pandas.core.arrays.interval": "IntervalArray",
    "pandas.core.arrays.period": "PeriodArray",
    "pandas.core.arrays.sparse.array": "SparseArray",
    "pandas.core.arrays.sparse.dtype": "SparseDtype",
    "pandas.core.arrays.string_": "StringArray StringDtype",
    "pandas.core.arrays.timedeltas": "TimedeltaArray",
    "pandas.core.dtypes.dtypes": "CategoricalDtype DatetimeTZDtype IntervalDtype",
    "pandas.core.frame": "DataFrame",
    "pandas.core.indexes.base": "Index",
    "pandas.core.indexes.category": "CategoricalIndex",
    "pandas.core.indexes.datetimes": "DatetimeIndex",
    "pandas.core.indexes.interval": "IntervalIndex",
    "pandas.core.indexes.multi": "MultiIndex",
    "pandas.core.indexes.numeric": "Float64Index Int64Index UInt64Index",
    "pandas.core.indexes.period": "PeriodIndex",
    "pandas.core.indexes.range": "RangeIndex",
    "pandas.core.indexes.timedeltas": "TimedeltaIndex",
    "pandas.core.internals.managers": "BlockManager SingleBlockManager",
    "pandas.core.series": "Series",
    # LightGBM, XGBoost: their model text or bytes are parsed by their own libraries
    "lightgbm.basic": "Booster",
    "lightgbm.sklearn": "LGBMClassifier LGBMModel LGBMRanker LGBMRegressor",
    "xgboost.core": "Booster",
    "xgboost.sklearn": ("XGBClassifier XGBModel XGBRanker XGBRFClassifier XGBRFRegressor XGBRegressor"),
    # automated ML: featurizers, learners, ensembles
    "azureml.automl.core.featurization.featurizationconfig": "FeaturizationConfig",
    "azureml.automl.runtime._feature_sweeped_state_container": "FeatureSweepedStateContainer",
    "azureml.automl.runtime.featurization.data_transformer": "DataTransformer",
    "azureml.automl.runtime.featurization.generic_transformer": "GenericTransformer",
    "azureml.automl.runtime.featurization.text_transformer": "TextTransformer",
    "azureml.automl.runtime.featurization.transformer_and_mapper": "TransformerAndMapper",
    "azureml.automl.runtime.featurizer.transformer.generic.lambda_transformer": "LambdaTransformer",
    "azureml.automl.runtime.featurizer.transformer.timeseries.forecasting_pipeline": "AzureMLForecastPipeline",
    "azureml.automl.runtime.featurizer.transformer.timeseries.timeseries_transformer": "TimeSeriesTransformer",
    "azureml.automl.runtime.shared.model_wrappers": (
        "BoxCoxTransformerScipy CatBoostClassifier CatBoostRegressor DaskLightGBMClassifier DaskLightGBMRegressor "
        "DropColumnsTransformer GPUHelper IdentityTransformer LightGBMClassifier LightGBMRegressor LightGbmHelper "
        "LinearSVMWrapper LogTransformer NBWrapper NuSVCWrapper PowerTransformer PreprocWrapper "
        "QuantileTransformerWrapper SGDClassifierWrapper SVCWrapper SparseNormalizer StandardScalerWrapper "
        "TruncatedSVDWrapper XGBoostClassifier XGBoostRegressor"
    ),
    "azureml.automl.runtime.shared.problem_info": "ProblemInfo",
    "azureml.automl.runtime.shared.resource_limits": "SafeEnforceLimits",
    "azureml.training.tabular.featurization._engineered_feature_names": (
        "FeatureNamesHelper _FeatureTransformers _FeatureTransformersAsJSONObject _GenerateEngineeredFeatureNames "
        "_RawFeatureFeaturizationInfo _Transformer _TransformerParamsHelper"
    ),
    "azureml.training.tabular.featurization._featurization_config": "FeaturizationConfig",
    "azureml.training.tabular.featurization._raw_feature_stats": (
        "PreprocessingStatistics RawFeatureStats TimeSeriesStat"
    ),
    "azureml.training.tabular.featurization.categorical.cat_imputer": "CatImputer",
    "azureml.training.tabular.featurization.categorical.hashonehotvectorizer_transformer": (
        "HashOneHotVectorizerTransformer"
    ),
    "azureml.training.tabular.featurization.categorical.labelencoder_transformer": "LabelEncoderTransformer",
    "azureml.training.tabular.featurization.categorical.onehotencoder_transformer": "OneHotEncoderTransformer",
    "azureml.training.tabular.featurization.datetime.datetime_transformer": "DateTimeFeaturesTransformer",
    "azureml.training.tabular.featurization.generic.countbased_target_encoder": "CountBasedTargetEncoder",
    "azureml.training.tabular.featurization.generic.crossvalidation_target_encoder": "CrossValidationTargetEncoder",
    "azureml.training.tabular.featurization.generic.imputation_marker": "ImputationMarker",
    "azureml.training.tabular.featurization.generic.modelbased_target_encoder": "ModelBasedTargetEncoder",
    "azureml.training.tabular.featurization.generic.woe_target_encoder": "WoEBasedTargetEncoder",
    "azureml.training.tabular.featurization.numeric.bin_transformer": "BinTransformer",
    "azureml.training.tabular.featurization.text.bagofwords_transformer": "BagOfWordsTransformer",
    "azureml.training.tabular.featurization.text.naive_bayes": "NaiveBayes",
    "azureml.training.tabular.featurization.text.stats_transformer": "StatsTransformer",
    "azureml.training.tabular.featurization.text.string_concat_transformer": "StringConcatTransformer",
    "azureml.training.tabular.featurization.text.stringcast_transformer": "StringCastTransformer",
    "azureml.training.tabular.featurization.timeseries.all_rows_dropper": "AllRowsDropper",
    "azureml.training.tabular.featurization.timeseries.category_binarizer": "CategoryBinarizer",
    "azureml.training.tabular.featurization.timeseries.datetime_column_featurizer": "DatetimeColumnFeaturizer",
    "azureml.training.tabular.featurization.timeseries.drop_columns": "DropColumns",
    "azureml.training.tabular.featurization.timeseries.grain_dropper": "GrainDropper",
    "azureml.training.tabular.featurization.timeseries.grain_index_featurizer": "GrainIndexFeaturizer",
    "azureml.training.tabular.featurization.timeseries.lag_lead_operator": "LagLeadOperator",
    "azureml.training.tabular.featurization.timeseries.lagging_transformer": "LaggingTransformer",
    "azureml.training.tabular.featurization.timeseries.max_horizon_featurizer": "MaxHorizonFeaturizer",
    "azureml.training.tabular.featurization.timeseries.missingdummies_transformer": "MissingDummiesTransformer",
    "azureml.training.tabular.featurization.timeseries.numericalize_transformer": "NumericalizeTransformer",
    "azureml.training.tabular.featurization.timeseries.restore_dtypes_transformer": "RestoreDtypesTransformer",
    "azureml.training.tabular.featurization.timeseries.rolling_window": "RollingWindow",
    "azureml.training.tabular.featurization.timeseries.short_grain_dropper": "ShortGrainDropper",
    "azureml.training.tabular.featurization.timeseries.stationary_featurizer": "StationaryFeaturizer",
    "azureml.training.tabular.featurization.timeseries.stl_featurizer": "STLFeaturizer",
    "azureml.training.tabular.featurization.timeseries.time_index_featurizer": "TimeIndexFeaturizer",
    "azureml.training.tabular.featurization.timeseries.time_series_imputer": "TimeSeriesImputer",
    "azureml.training.tabular.featurization.timeseries.timeseries_transformer": "TimeSeriesTransformer",
    "azureml.training.tabular.featurization.timeseries.unique_target_grain_dropper": "UniqueTargetGrainDropper",
    "azureml.training.tabular.models.calibrated_model": "CalibratedModel",
    "azureml.training.tabular.models.differencing_y_transformer": "DifferencingYTransformer",
    # naive models stand in for series that the learner does not know; as learners they are refused, by name
    "azureml.training.tabular.models.forecasting_models": (
        "Average Naive SeasonalAverage SeasonalNaive _LowCapacityModelStateContainer"
    ),
    "azureml.training.tabular.models.forecasting_pipeline_wrapper": "ForecastingPipelineWrapper RegressionPipeline",
    "azureml.training.tabular.models.pipeline_with_ytransformations": "PipelineWithYTransformations",
    "azureml.training.tabular.models.sparse_scale_zero_one": "SparseScaleZeroOne",
    "azureml.training.tabular.models.stack_ensemble": "Scorer StackEnsembleClassifier StackEnsembleRegressor",
    "azureml.training.tabular.models.target_type_transformer": "TargetTypeTransformer",
    "azureml.training.tabular.models.voting_ensemble": "PreFittedSoftVotingClassifier PreFittedSoftVotingRegressor",
    "azureml.training.tabular.models.y_pipeline_transformer": "YPipelineTransformer",
    "azureml.training.tabular.timeseries._automl_forecast_freq": "AutoMLForecastFreq",
    "azureml.training.tabular.timeseries._time_series_data_set": "TimeSeriesDataSet",
    "sklearn_pandas.categorical_imputer": "CategoricalImputer",
    "sklearn_pandas.dataframe_mapper": "DataFrameMapper",
    "sklearn_pandas.pipeline": "TransformerPipeline",
    # explainers
    "azureml.interpret.scoring.scoring_explainer._scoring_explainer": (
        "KernelScoringExplainer LinearScoringExplainer ScoringExplainer TreeScoringExplainer"
    ),
    "interpret_community._internal.raw_explain.data_mapper": "DataMapper TransformationsListTransformer",
    "interpret_community._internal.raw_explain.data_mapper_utils": "TransformerConfig",
    "interpret_community._internal.raw_explain.feature_mappers": (
        "FuncTransformer IdentityMapper ManytoManyMapper OneHotEncoderMapper PassThroughMapper PipelineFeatureMapper"
    ),
    "interpret_community.mimic.models.lightgbm_model": "LGBMExplainableModel _LGBMFunctionWrapper _SparseTreeExplainer",
    "interpret_community.mimic.models.linear_model": "LinearExplainableModel LinearExplainer SGDExplainableModel",
    "interpret_community.mimic.models.tree_model": "DecisionTreeExplainableModel",
    "ml_wrappers.dataset.dataset_wrapper": "DatasetWrapper",
    "ml_wrappers.dataset.timestamp_featurizer": "CustomTimestampFeaturizer",
    "ml_wrappers.model.function_wrapper": "_FunctionWrapper _MultiVsSingleInstanceFunctionResolver",
    "ml_wrappers.model.wrapped_classification_model": "WrappedClassificationModel",
    "ml_wrappers.model.wrapped_classification_without_proba_model": "WrappedClassificationWithoutProbaModel",
    "ml_wrappers.model.wrapped_regression_model": "WrappedRegressionModel",
    "shap.explainers._kernel": "KernelExplainer",
    "shap.explainers._linear": "LinearExplainer",
    "shap.explainers._tree": "IsoTree SingleTree TreeEnsemble TreeExplainer",
    "shap.maskers._tabular": "Impute Independent Partition Tabular",
    "shap.utils._legacy": (
        "DenseData DenseDataWithIndex IdentityLink Instance InstanceWithIndex LogitLink Model SparseData"
    ),
    # scikit-learn: its estimators, and what they hold
    "sklearn._loss.link": "HalfLogitLink IdentityLink Interval LogLink LogitLink MultinomialLogit",
    "sklearn._loss.loss": (
        "AbsoluteError ExponentialLoss HalfBinomialLoss HalfGammaLoss HalfMultinomialLoss HalfPoissonLoss "
        "HalfSquaredError HalfTweedieLoss HalfTweedieLossIdentity HuberLoss PinballLoss"
    ),
    "sklearn.cluster._feature_agglomeration": "AgglomerationTransform",
    "sklearn.ensemble._gb_losses": (
        "BinomialDeviance ExponentialLoss HuberLossFunction LeastAbsoluteError LeastSquaresError MultinomialDeviance "
        "QuantileLossFunction"
    ),
    "sklearn.ensemble._hist_gradient_boosting.predictor": "TreePredictor",
    "sklearn.gaussian_process.kernels": (
        "CompoundKernel ConstantKernel DotProduct ExpSineSquared Exponentiation Matern PairwiseKernel Product RBF "
        "RationalQuadratic Sum WhiteKernel"
    ),
    "sklearn.metrics._scorer": (
        "_CurveScorer _MultimetricScorer _PassthroughScorer _PredictScorer _ProbaScorer _Scorer _ThresholdScorer"
    ),
    "sklearn.model_selection._split": (
        "GroupKFold GroupShuffleSplit KFold LeaveOneGroupOut LeaveOneOut LeavePGroupsOut LeavePOut PredefinedSplit "
        "RepeatedKFold RepeatedStratifiedKFold ShuffleSplit StratifiedGroupKFold StratifiedKFold "
        "StratifiedShuffleSplit TimeSeriesSplit"
    ),
    "sklearn.neural_network._stochastic_optimizers": "AdamOptimizer SGDOptimizer",
    "sklearn.utils._bunch": "Bunch",
    "sklearn.utils._metadata_requests": "MetadataRequest MethodMetadataRequest",
    "sklearn.calibration": "CalibratedClassifierCV _CalibratedClassifier _SigmoidCalibration _TemperatureScaling",
    "sklearn.cluster._affinity_propagation": "AffinityPropagation",
    "sklearn.cluster._agglomerative": "AgglomerativeClustering FeatureAgglomeration",
    "sklearn.cluster._bicluster": "SpectralBiclustering SpectralCoclustering",
    "sklearn.cluster._birch": "Birch _CFNode _CFSubcluster",
    "sklearn.cluster._bisect_k_means": "BisectingKMeans _BisectingTree",
    "sklearn.cluster._dbscan": "DBSCAN",
    "sklearn.cluster._hdbscan.hdbscan": "HDBSCAN",
    "sklearn.cluster._kmeans": "KMeans MiniBatchKMeans",
    "sklearn.cluster._mean_shift": "MeanShift",
    "sklearn.cluster._optics": "OPTICS",
    "sklearn.cluster._spectral": "SpectralClustering",
    "sklearn.compose._column_transformer": "ColumnTransformer _RemainderColsList make_column_selector",
    "sklearn.compose._target": "TransformedTargetRegressor",
    "sklearn.covariance._elliptic_envelope": "EllipticEnvelope",
    "sklearn.covariance._empirical_covariance": "EmpiricalCovariance",
    "sklearn.covariance._graph_lasso": "GraphicalLasso GraphicalLassoCV",
    "sklearn.covariance._robust_covariance": "MinCovDet",
    "sklearn.covariance._shrunk_covariance": "LedoitWolf OAS ShrunkCovariance",
    "sklearn.cross_decomposition._pls": "_PLS CCA PLSCanonical PLSRegression PLSSVD",
    "sklearn.decomposition._dict_learning": "DictionaryLearning MiniBatchDictionaryLearning SparseCoder",
    "sklearn.decomposition._factor_analysis": "FactorAnalysis",
    "sklearn.decomposition._fastica": "FastICA",
    "sklearn.decomposition._incremental_pca": "IncrementalPCA",
    "sklearn.decomposition._kernel_pca": "KernelPCA",
    "sklearn.decomposition._lda": "LatentDirichletAllocation",
    "sklearn.decomposition._nmf": "MiniBatchNMF NMF",
    "sklearn.decomposition._pca": "PCA",
    "sklearn.decomposition._sparse_pca": "MiniBatchSparsePCA SparsePCA",
    "sklearn.decomposition._truncated_svd": "TruncatedSVD",
    "sklearn.discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
    "sklearn.dummy": "DummyClassifier DummyRegressor",
    "sklearn.ensemble._bagging": "BaggingClassifier BaggingRegressor ",
    "sklearn.ensemble._forest": (
        "ExtraTreesClassifier ExtraTreesRegressor ForestClassifier ForestRegressor "
        "RandomForestClassifier RandomForestRegressor RandomTreesEmbedding"
    ),
    "sklearn.ensemble._gb": "GradientBoostingClassifier GradientBoostingRegressor",
    "sklearn.ensemble._hist_gradient_boosting.binning": "_BinMapper",
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": (
        "HistGradientBoostingClassifier HistGradientBoostingRegressor"
    ),
    "sklearn.ensemble._iforest": "IsolationForest",
    "sklearn.ensemble._stacking": "StackingClassifier StackingRegressor",
    "sklearn.ensemble._voting": "VotingClassifier VotingRegressor",
    "sklearn.ensemble._weight_boosting": "AdaBoostClassifier AdaBoostRegressor ",
    "sklearn.feature_extraction._dict_vectorizer": "DictVectorizer",
    "sklearn.feature_extraction._hash": "FeatureHasher",
    "sklearn.feature_extraction.image": "PatchExtractor",
    "sklearn.feature_extraction.text": "CountVectorizer HashingVectorizer TfidfTransformer TfidfVectorizer",
    "sklearn.feature_selection._from_model": "SelectFromModel",
    "sklearn.feature_selection._rfe": "RFE RFECV",
    "sklearn.feature_selection._sequential": "SequentialFeatureSelector",
    "sklearn.feature_selection._univariate_selection": (
        "GenericUnivariateSelect SelectFdr SelectFpr SelectFwe SelectKBest SelectPercentile"
    ),
    "sklearn.feature_selection._variance_threshold": "VarianceThreshold",
    "sklearn.frozen._frozen": "FrozenEstimator",
    "sklearn.gaussian_process._gpc": "_BinaryGaussianProcessClassifierLaplace GaussianProcessClassifier",
    "sklearn.gaussian_process._gpr": "GaussianProcessRegressor",
    "sklearn.impute._base": "MissingIndicator SimpleImputer",
    "sklearn.impute._iterative": "IterativeImputer _ImputerTriplet",
    "sklearn.impute._knn": "KNNImputer",
    "sklearn.isotonic": "IsotonicRegression",
    "sklearn.kernel_approximation": "AdditiveChi2Sampler Nystroem PolynomialCountSketch RBFSampler SkewedChi2Sampler",
    "sklearn.kernel_ridge": "KernelRidge",
    "sklearn.linear_model._base": "LinearModel LinearRegression MultiOutputLinearModel",
    "sklearn.linear_model._bayes": "ARDRegression BayesianRidge",
    "sklearn.linear_model._coordinate_descent": (
        "ElasticNet ElasticNetCV Lasso LassoCV LinearModelCV MultiTaskElasticNet MultiTaskElasticNetCV "
        "MultiTaskLasso MultiTaskLassoCV"
    ),
    "sklearn.linear_model._glm.glm": "_GeneralizedLinearRegressor GammaRegressor PoissonRegressor TweedieRegressor",
    "sklearn.linear_model._huber": "HuberRegressor",
    "sklearn.linear_model._least_angle": "Lars LarsCV LassoLars LassoLarsCV LassoLarsIC",
    "sklearn.linear_model._logistic": "LogisticRegression LogisticRegressionCV",
    "sklearn.linear_model._omp": "OrthogonalMatchingPursuit OrthogonalMatchingPursuitCV",
    "sklearn.linear_model._passive_aggressive": "PassiveAggressiveClassifier PassiveAggressiveRegressor",
    "sklearn.linear_model._perceptron": "Perceptron",
    "sklearn.linear_model._quantile": "QuantileRegressor",
    "sklearn.linear_model._ransac": "RANSACRegressor",
    "sklearn.linear_model._ridge": (
        "_IdentityClassifier _IdentityRegressor _RidgeGCV Ridge RidgeClassifier RidgeClassifierCV RidgeCV"
    ),
    "sklearn.linear_model._stochastic_gradient": ("SGDClassifier SGDOneClassSVM SGDRegressor"),
    "sklearn.linear_model._theil_sen": "TheilSenRegressor",
    "sklearn.manifold._classical_mds": "ClassicalMDS",
    "sklearn.manifold._isomap": "Isomap",
    "sklearn.manifold._locally_linear": "LocallyLinearEmbedding",
    "sklearn.manifold._mds": "MDS",
    "sklearn.manifold._spectral_embedding": "SpectralEmbedding",
    "sklearn.manifold._t_sne": "TSNE",
    "sklearn.mixture._bayesian_mixture": "BayesianGaussianMixture",
    "sklearn.mixture._gaussian_mixture": "GaussianMixture",
    "sklearn.model_selection._classification_threshold": (
        "FixedThresholdClassifier TunedThresholdClassifierCV _CurveScorer"
    ),
    "sklearn.model_selection._search": "GridSearchCV RandomizedSearchCV",
    "sklearn.model_selection._search_successive_halving": ("HalvingGridSearchCV HalvingRandomSearchCV"),
    "sklearn.multiclass": "_ConstantPredictor OneVsOneClassifier OneVsRestClassifier OutputCodeClassifier",
    "sklearn.multioutput": (
        "_MultiOutputEstimator ClassifierChain MultiOutputClassifier MultiOutputRegressor RegressorChain"
    ),
    "sklearn.naive_bayes": "BernoulliNB CategoricalNB ComplementNB GaussianNB MultinomialNB",
    "sklearn.neighbors._base": "NeighborsBase",
    "sklearn.neighbors._classification": "KNeighborsClassifier RadiusNeighborsClassifier",
    "sklearn.neighbors._graph": "KNeighborsTransformer RadiusNeighborsTransformer",
    "sklearn.neighbors._kde": "KernelDensity",
    "sklearn.neighbors._lof": "LocalOutlierFactor",
    "sklearn.neighbors._nca": "NeighborhoodComponentsAnalysis",
    "sklearn.neighbors._nearest_centroid": "NearestCentroid",
    "sklearn.neighbors._regression": "KNeighborsRegressor RadiusNeighborsRegressor",
    "sklearn.neighbors._unsupervised": "NearestNeighbors",
    "sklearn.neural_network._multilayer_perceptron": "MLPClassifier MLPRegressor",
    "sklearn.neural_network._rbm": "BernoulliRBM",
    "sklearn.pipeline": "FeatureUnion Pipeline",
    "sklearn.preprocessing._data": (
        "Binarizer KernelCenterer MaxAbsScaler MinMaxScaler Normalizer PowerTransformer QuantileTransformer "
        "RobustScaler StandardScaler"
    ),
    "sklearn.preprocessing._discretization": "KBinsDiscretizer",
    "sklearn.preprocessing._encoders": "OneHotEncoder OrdinalEncoder",
    "sklearn.preprocessing._function_transformer": "FunctionTransformer",
    "sklearn.preprocessing._label": "LabelBinarizer LabelEncoder MultiLabelBinarizer",
    "sklearn.preprocessing._polynomial": "PolynomialFeatures SplineTransformer",
    "sklearn.preprocessing._target_encoder": "TargetEncoder",
    "sklearn.random_projection": "GaussianRandomProjection SparseRandomProjection",
    "sklearn.semi_supervised._label_propagation": "LabelPropagation LabelSpreading",
    "sklearn.semi_supervised._self_training": "SelfTrainingClassifier",
    "sklearn.svm._classes": "LinearSVC LinearSVR NuSVC NuSVR OneClassSVM SVC SVR",
    "sklearn.tree._classes": ("DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier ExtraTreeRegressor"),
}

# Called with arguments from the file: what their own packages write into pickles.
CALLED: dict[str, str] = {
    "collections": "OrderedDict",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "uuid": "UUID",
    "numpy.random._pickle": "__generator_ctor",
    "numpy.random.bit_generator": "__pyx_unpickle_SeedSequence",
    "pandas": "Interval Period PeriodDtype StringDtype",
    "pandas._libs.arrays": "__pyx_unpickle_NDArrayBacked",
    "pandas._libs.internals": "_unpickle_block",
    "pandas._libs.interval": "Interval __pyx_unpickle_IntervalMixin",
    "pandas._libs.sparse": "BlockIndex IntIndex",
    "pandas._libs.tslibs.nattype": "__nat_unpickle _nat_unpickle",
    "pandas._libs.tslibs.offsets": _DATES,
    "pandas._libs.tslibs.period": "Period",
    "pandas._libs.tslibs.timedeltas": "_timedelta_unpickle",
    "pandas._libs.tslibs.timestamps": "_unpickle_timestamp",
    "pandas.core.dtypes.dtypes": "PeriodDtype",
    "pandas.core.internals.managers": "BlockManager SingleBlockManager",
    "pytz": "_UTC _p",
    "interpret_community.common.constants": "ExplainableModelType ModelTask ResetIndex ShapValuesOutput",
    "ml_wrappers.common.constants": "ExplainableModelType ModelTask ResetIndex ShapValuesOutput",
    "azureml.automl.runtime.featurizer.transformer.timeseries.forecasting_pipeline": (
        "AzureMLForecastPipelineExecutionType"
    ),
    "azureml.automl.runtime.featurizer.transformer.timeseries.timeseries_transformer": "TimeSeriesPipelineType",
    "azureml.training.tabular.featurization.timeseries.timeseries_transformer": "TimeSeriesPipelineType",
    "sklearn._loss._loss": (
        "CyAbsoluteError CyExponentialLoss CyHalfBinomialLoss CyHalfGammaLoss CyHalfMultinomialLoss CyHalfPoissonLoss "
        "CyHalfSquaredError CyHalfTweedieLoss CyHalfTweedieLossIdentity CyHuberLoss CyPinballLoss "
        "__pyx_unpickle_CyAbsoluteError __pyx_unpickle_CyExponentialLoss __pyx_unpickle_CyHalfBinomialLoss "
        "__pyx_unpickle_CyHalfGammaLoss __pyx_unpickle_CyHalfMultinomialLoss __pyx_unpickle_CyHalfPoissonLoss "
        "__pyx_unpickle_CyHalfSquaredError __pyx_unpickle_CyHalfTweedieLoss __pyx_unpickle_CyHalfTweedieLossIdentity "
        "__pyx_unpickle_CyHuberLoss __pyx_unpickle_CyPinballLoss"
    ),
    "sklearn.linear_model._sgd_fast": (
        "EpsilonInsensitive Hinge Huber Log ModifiedHuber SquaredEpsilonInsensitive SquaredHinge SquaredLoss"
    ),
    "sklearn.metrics._dist_metrics": "newObj",
    "sklearn.neighbors._ball_tree": "newObj",
    "sklearn.neighbors._kd_tree": "newObj",
    "sklearn.neighbors._quad_tree": "_QuadTree",
    "sklearn.tree._tree": "Tree",
}

# Neither made nor called while a file is opened, but passed on: parameters of models.
VALUES: dict[str, str] = {
    "batch_explain.demo": "calendar_names calendar_parts",
    "builtins": "Ellipsis NotImplemented",
    "numpy": "abs absolute exp expm1 log log10 log1p log2 max mean median min nanmean nanmedian reciprocal sqrt square",
    "numpy.core._multiarray_umath": "absolute exp expm1 log log10 log1p log2 reciprocal sqrt square",
    "pandas": "NA",
    "pandas._libs.missing": "NA",
    "scipy.special._special_ufuncs": "expit logit",
    "scipy.special._ufuncs": "boxcox expit inv_boxcox logit",
    "shap.utils._legacy": "IdentityLink.f LogitLink.f",
    "sklearn.cluster._kmeans": "_kmeans_single_elkan _kmeans_single_lloyd lloyd_iter_chunked_dense",
    "sklearn.feature_selection._mutual_info": "mutual_info_classif mutual_info_regression",
    "sklearn.feature_selection._univariate_selection": "chi2 f_classif f_oneway f_regression r_regression",
    "sklearn.metrics._classification": (
        "accuracy_score balanced_accuracy_score brier_score_loss cohen_kappa_score f1_score fbeta_score log_loss "
        "matthews_corrcoef precision_score recall_score"
    ),
    "sklearn.metrics._dist_metrics": _DISTANCES,
    "sklearn.metrics._ranking": "average_precision_score roc_auc_score top_k_accuracy_score",
    "sklearn.metrics._regression": (
        "explained_variance_score mean_absolute_error mean_absolute_percentage_error mean_poisson_deviance "
        "mean_squared_error mean_squared_log_error median_absolute_error r2_score root_mean_squared_error"
    ),
    "sklearn.metrics.pairwise": (
        "chi2_kernel cosine_similarity euclidean_distances laplacian_kernel linear_kernel manhattan_distances "
        "polynomial_kernel rbf_kernel sigmoid_kernel"
    ),
    "sklearn.neighbors._ball_tree": "BallTree BallTree32 BallTree64",
    "sklearn.neighbors._kd_tree": "KDTree KDTree32 KDTree64",
    "sklearn.preprocessing._function_transformer": "_identity",
}


# Names that stand for others: Cython's slip in scikit-learn 1.5; a memory map would open a file.
ALIASES: dict[str, str] = {"numpy.memmap": "numpy.ndarray"}
MODULE_ALIASES: dict[str, str] = {"_loss": "sklearn._loss._loss"}
