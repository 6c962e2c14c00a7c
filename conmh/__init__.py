"""ConMH, the third system: a contrastive masked autoencoder. Settings, network, a file a stage."""
