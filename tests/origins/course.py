"""The course's batch normalization in plain NumPy, as its text describes it: an oracle for ``fastbn.cs231n``."""

from __future__ import annotations

import numpy as np


def batchnorm_forward(x, gamma, beta, bn_param):
    """Running values are kept as the course keeps them: zeros at first, replaced at each step, biased variance."""
    eps, momentum = bn_param.get("eps", 1e-5), bn_param.get("momentum", 0.9)
    running_mean = bn_param.get("running_mean", np.zeros(x.shape[1], x.dtype))
    running_var = bn_param.get("running_var", np.zeros(x.shape[1], x.dtype))
    cache = None
    if bn_param["mode"] == "train":
        mean, var = x.mean(axis=0), x.var(axis=0)
        std = np.sqrt(var + eps)
        centred = x - mean
        out = gamma * (centred / std) + beta
        running_mean = momentum * running_mean + (1 - momentum) * mean
        running_var = momentum * running_var + (1 - momentum) * var
        cache = centred, std, gamma
    elif bn_param["mode"] == "test":
        out = gamma * (x - running_mean) / np.sqrt(running_var + eps) + beta
    else:
        raise ValueError(bn_param["mode"])
    bn_param["running_mean"], bn_param["running_var"] = running_mean, running_var
    return out, cache


def batchnorm_backward(dout, cache):
    """Node by node through the graph, from the output to the input."""
    centred, std, gamma = cache
    count = len(dout)
    dbeta = dout.sum(axis=0)
    dgamma = (dout * centred / std).sum(axis=0)
    dnormalized = dout * gamma
    dcentred = dnormalized / std
    dstd = -(dnormalized * centred).sum(axis=0) / std**2
    dvar = dstd / (2 * std)
    dsquares = np.ones_like(dout) / count * dvar
    dcentred = dcentred + 2 * centred * dsquares
    dmean = -dcentred.sum(axis=0)
    dx = dcentred + np.ones_like(dout) / count * dmean
    return dx, dgamma, dbeta


def batchnorm_backward_alt(dout, cache):
    """By the formula to which the nodes reduce."""
    centred, std, gamma = cache
    x_hat = centred / std
    dbeta, dgamma = dout.sum(axis=0), (dout * x_hat).sum(axis=0)
    dx = gamma / std * (dout - dbeta / len(dout) - x_hat * dgamma / len(dout))
    return dx, dgamma, dbeta


def spatial_batchnorm_forward(x, gamma, beta, bn_param):
    """Every pixel is a row."""
    out, cache = batchnorm_forward(_rows(x), gamma, beta, bn_param)
    return _images(out, x.shape), cache


def spatial_batchnorm_backward(dout, cache):
    dx, dgamma, dbeta = batchnorm_backward(_rows(dout), cache)
    return _images(dx, dout.shape), dgamma, dbeta


def _rows(x):
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(rows, shape):
    n, c, h, w = shape
    return rows.reshape(n, h, w, c).transpose(0, 3, 1, 2)
