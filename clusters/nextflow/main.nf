#!/usr/bin/env nextflow
// Refocuses a plate: writes what all fields share, then does shards side by side, then makes tables and pictures
//
//   nextflow run main.nf --source 'plate/*.tif' --results refocused.ome.zarr --shards 8

include { REFOCUS_PLATE as REFOCUS_INIT   } from './modules/local/refocus/plate/main'
include { REFOCUS_PLATE as REFOCUS_SHARD  } from './modules/local/refocus/plate/main'
include { REFOCUS_PLATE as REFOCUS_TABLES } from './modules/local/refocus/plate/main'

workflow {
    if (!params.source || !params.results) {
        error("give --source PLATE and --results NEW_PLATE.ome.zarr")
    }
    // An address, such as s3://bucket/plate.ome.zarr, stays as it is
    def absolute = { text ->
        text.startsWith('/') || text.contains('://') ? text : "${workflow.launchDir}/${text}".toString()
    }
    def source = absolute(params.source)
    def results = absolute(params.results)
    def plate = [[id: results.tokenize('/').last()], source, results]
    def shards = params.shards as int

    REFOCUS_INIT(channel.of(plate + ['--init']))

    ready = REFOCUS_INIT.out.results.flatMap { _result -> (1..shards).collect { n -> plate + ["--shard ${n}/${shards}".toString()] } }
    REFOCUS_SHARD(ready)

    ended = REFOCUS_SHARD.out.results.collect(flat: false).ifEmpty([]).map { _all -> plate + ['--tables'] }
    REFOCUS_TABLES(ended)
}
