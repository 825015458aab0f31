package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
)

// A tally says what a history file tells of the sources 0 to n-1.
type tally struct {
	Lines      int `json:"lines"`
	Sources    int `json:"sources"`    // distinct sources that sent a probe and have a line
	Duplicates int `json:"duplicates"` // further lines of the same sources
	Strangers  int `json:"strangers"`  // lines of addresses that sent nothing
	Malformed  int `json:"malformed"`  // lines that are not what such a probe must give
}

// tallyFile counts the lines of a history file; n probes were sent. A file that
// does not exist has no lines.
func tallyFile(name string, n int) (tally, error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return tally{}, nil
	}
	if err != nil {
		return tally{}, err
	}
	defer f.Close()
	t, err := tallyHistory(f, n)
	if err != nil {
		return tally{}, fmt.Errorf("reading %s: %w", name, err)
	}
	return t, nil
}

func tallyHistory(r io.Reader, n int) (tally, error) {
	var t tally
	seen := make([]uint64, n/64+1) // a bit per source
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		t.Lines++
		source, ok := parseLine(lines.Bytes())
		i, ours := sourceIndex(source)
		switch word, bit := &seen[min(int(i), n)/64], uint64(1)<<(i%64); {
		case !ok:
			t.Malformed++
		case !ours || int(i) >= n:
			t.Strangers++
		case *word&bit != 0:
			t.Duplicates++
		default:
			*word |= bit
			t.Sources++
		}
	}
	return t, lines.Err()
}

var (
	lineStart = []byte("Scan from: [")
	lineEnd   = fmt.Appendf(nil, ") protocol: [TCP] port: [%d] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]", trapPort)
)

// parseLine returns the source that a line of PortSentry 2 names. It reports
// false unless all else after the time stamp is that of a probe of ours; the
// stamp itself is not looked at. It is kept apart
// from the daemon's own parser, so that one mistake cannot hide the other.
func parseLine(line []byte) (netip.Addr, bool) {
	_, line, ok := bytes.Cut(line, lineStart)
	if !ok {
		return netip.Addr{}, false
	}
	source, rest, ok := bytes.Cut(line, []byte("] ("))
	if !ok || !bytes.HasPrefix(rest, source) || !bytes.Equal(rest[len(source):], lineEnd) {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(string(source))
	return addr, err == nil
}
