package main

import (
	"io"
	"testing"
)

func TestRateList(t *testing.T) {
	for in, want := range map[string]string{
		"1000":          "1000",
		"max":           "max",
		"1000,5000,max": "1000,5000,max",
	} {
		var l rateList
		if err := l.Set(in); err != nil || l.String() != want {
			t.Errorf("Set(%q): %v, then String() = %q, want %q", in, err, l.String(), want)
		}
	}
	for _, in := range []string{"", "0", "-1", "fast", "1000,", "1e3", "1000000001"} {
		if err := new(rateList).Set(in); err == nil {
			t.Errorf("Set(%q): no error", in)
		}
	}
}

func TestParseOptionsRefuses(t *testing.T) {
	tests := map[string][]string{
		"no source":           {"--sources", "0"},
		"too many sources":    {"--sources", "10000001"},
		"too many bans":       {"--bans", "100001"},
		"bans below none":     {"--bans", "-1"},
		"no time":             {"--time", "0s"},
		"too much time":       {"--time", "2h"},
		"argument":            {"100"},
		"daemon not there":    {"--daemon", "testdata/none"},
		"rate not a number":   {"--rates", "quick"},
		"flag never heard of": {"--peer", "x"},
	}
	for name, args := range tests {
		t.Run(name, func(t *testing.T) {
			if o, err := parseOptions(args, io.Discard); err == nil {
				t.Errorf("parseOptions(%q) = %+v, want an error", args, o)
			}
		})
	}
}

func TestPercentIsNeverAllByRounding(t *testing.T) {
	for _, tt := range []struct {
		part, whole int
		want        string
	}{
		{3, 3, "100"},
		{2_499_999, 2_500_000, "99.99"},
		{1, 3, "33.33"},
		{0, 3, "0.00"},
	} {
		if got := percent(tt.part, tt.whole); got != tt.want {
			t.Errorf("percent(%d, %d) = %q, want %q", tt.part, tt.whole, got, tt.want)
		}
	}
}

func TestStatedLosses(t *testing.T) {
	const said = `time="2026-11-22T07:44:33Z" level=warning msg="packets or events lost" packets=7
time="2026-11-22T07:44:34Z" level=info msg="portsnare has stopped" events_lost=0 packets_lost=12 probes=9
`
	got := statedLosses(said)
	if got.Packets == nil || *got.Packets != 12 || got.Events == nil || *got.Events != 0 {
		t.Errorf("statedLosses(%q) = %+v, want 12 packets and no event", said, got)
	}
	if got := statedLosses("portsnare is active\n"); got != (losses{}) {
		t.Errorf("statedLosses without counters = %+v, want nothing", got)
	}
}
