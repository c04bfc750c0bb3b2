// Command peer reads headers with gguf-parser-go, for comparison. It is a module
// of its own, so that the product does not depend on that library. Each line of
// the input is a JSON list of paths; the answer is {"Seconds": n} or {"Error": text}.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"time"

	parser "github.com/gpustack/gguf-parser-go"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

func run() error {
	in, out := bufio.NewScanner(os.Stdin), json.NewEncoder(os.Stdout)
	for in.Scan() {
		seconds, err := read(in.Bytes())
		answer := map[string]any{"Seconds": seconds}
		if err != nil {
			answer = map[string]any{"Error": err.Error()}
		}
		if err := out.Encode(answer); err != nil {
			return err
		}
	}
	return in.Err()
}

// read parses files in the fastest way that the library has: mapped, and without
// the values of long arrays.
func read(line []byte) (float64, error) {
	var paths []string
	if err := json.Unmarshal(line, &paths); err != nil {
		return 0, err
	}
	begin := time.Now()
	for _, p := range paths {
		if _, err := parser.ParseGGUFFile(p, parser.UseMMap(), parser.SkipLargeMetadata()); err != nil {
			return 0, err
		}
	}
	return time.Since(begin).Seconds(), nil
}
