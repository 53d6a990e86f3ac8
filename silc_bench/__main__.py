from silc_bench.cli import main

main()
