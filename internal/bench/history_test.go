package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// lineOf is the history line of a probe of source number i.
func lineOf(i uint32) string {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], sourceAddr(i))
	return lineFrom(netip.AddrFrom4(a).String())
}

func lineFrom(addr string) string {
	return fmt.Sprintf("2026-11-22T07:44:33.659+0000 Scan from: [%s] (%[1]s) protocol: [TCP] port: [9] type: [TCP SYN/Normal scan] IP opts: [not set] ignored: [false] triggered: [true] noblock: [true] blocked: [false]\n", addr)
}

func TestTallyHistory(t *testing.T) {
	tests := map[string]struct {
		history string
		want    tally
	}{
		"nothing":                {"", tally{}},
		"every source":           {lineOf(0) + lineOf(2) + lineOf(1), tally{Lines: 3, Sources: 3}},
		"one source twice":       {lineOf(2) + lineOf(2), tally{Lines: 2, Sources: 1, Duplicates: 1}},
		"source not yet sent":    {lineOf(3), tally{Lines: 1, Strangers: 1}},
		"source far away":        {lineOf(sourceMask), tally{Lines: 1, Strangers: 1}},
		"address out of range":   {lineFrom("192.0.2.1"), tally{Lines: 1, Strangers: 1}},
		"no address":             {lineFrom("unknown"), tally{Lines: 1, Malformed: 1}},
		"another port":           {strings.Replace(lineOf(0), "port: [9]", "port: [7]", 1), tally{Lines: 1, Malformed: 1}},
		"name for the address":   {strings.Replace(lineOf(0), "(2", "(3", 1), tally{Lines: 1, Malformed: 1}},
		"line cut short":         {lineOf(0)[:100], tally{Lines: 1, Malformed: 1}},
		"two lines run together": {strings.TrimSuffix(lineOf(0), "\n") + lineOf(1), tally{Lines: 1, Malformed: 1}},
		"another text":           {"portsnare is active\n", tally{Lines: 1, Malformed: 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := tallyHistory(strings.NewReader(tt.history), 3)
			if err != nil || got != tt.want {
				t.Errorf("tallyHistory(%q, 3) = %+v, %v, want %+v", tt.history, got, err, tt.want)
			}
		})
	}
}
