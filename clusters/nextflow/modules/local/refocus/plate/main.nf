// A text in quotes for the shell
def quoted(text) {
    return "'" + text.toString().replace("'", "'\\''") + "'"
}

// A step of `refocus plate`: --init, --shard 2/8, or --tables. The results are the state, so a step goes on where it ended.
process REFOCUS_PLATE {
    tag "${meta.id} ${step}"
    label 'process_low'

    conda "${moduleDir}/environment.yml"

    input:
    tuple val(meta), val(source), val(results), val(step) // Absolute paths or addresses, as text, so nothing is staged

    output:
    tuple val(meta), val(results), emit: results
    tuple val("${task.process}"), val('refocus_nbdev'), eval('refocus --version'), topic: versions, emit: versions_refocus

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    """
    export OMP_NUM_THREADS=${task.cpus} MKL_NUM_THREADS=${task.cpus}
    refocus plate ${quoted(source)} ${quoted(results)} ${step} ${args}
    """

    stub:
    def args = task.ext.args ?: ''
    """
    echo refocus plate ${quoted(source)} ${quoted(results)} ${step} ${args}
    """
}
