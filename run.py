"""Edit the settings, then ``python run.py``. The imported stage is the one that runs.

Every setting is an option too: ``python run.py --hashcode_size 32 --cfg.n_clusters 100 --stage train``;
``python run.py --help`` explains them, with ``--stage bth.train`` those of BTH. None means: what the dataset
JSON says, else the published value.
"""

import sys

import engine

engine.listen()  # to Ctrl-C, while all else is being loaded

from engine.launch import launch
from pipeline import train_model

# The stage to run: in the line above, instead of pipeline, also pretrain, train or test; bth.pipeline,
# bth.pretrain, bth.prepare, bth.train or bth.test; conmh.pipeline, conmh.train or conmh.test.

settings = dict(
    data_set_config="Json/demo.json",  # or Json/fcvid.json, Json/Anet.json, Json/yfcc.json, or yours
    max_iter=None,  # epochs of the two training stages, e.g. [100, 300]; of ConMH's one, e.g. 800
    lr=None,
    batch_size=None,
    hidden_size=None,  # width H of the encoder
    decoder_size=None,  # width H' of the decoder of WSCH or ConMH
    hashcode_size=None,  # bits
    weight_path=None,  # checkpoint or folder that train or test starts from; None: the newest of this dataset
    result_log_dir="log",
    result_weight_dir="weight",
    result_dir="result",  # numbers and codes of every test
    cfg=dict(  # of WSCH
        a=None,  # weight of the cluster loss
        b=None,  # weight of the contrastive loss
        clus_temperature=None,
        n_clusters=None,
        temperature=None,
        tau_plus=None,
        p1=None,  # mask ratio of pre-training and clustering
        p2=None,  # mask ratio of training
    ),
    bth=dict(  # of BTH
        n_anchors=None,
    ),
    seed=3346,
    device="auto",  # cpu, cuda, cuda:1 (the second GPU) or mps
    precision="float32",  # or bfloat16
    tf32=False,  # on CUDA: faster float32 products with 10 bits of mantissa
    memory="auto",  # ram or disk: where features are read from
    num_workers=1,  # threads that read ahead
    checkpoint_minutes=10,  # between checkpoints inside an epoch
    eval_every=0,  # epochs between two looks at the mAP of the test split; they choose nothing
)

if __name__ == "__main__":
    sys.exit(launch(train_model, settings, sys.argv[1:]))
