package conf

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParsePorts(t *testing.T) {
	tests := map[string]struct {
		in   string
		want string
	}{
		"nothing":                  {"", ""},
		"only commas":              {",,", ""},
		"one port":                 {"80", "80"},
		"ports and ranges":         {"1,7,512-515,65535", "1,7,512-515,65535"},
		"empty tokens":             {",1,,7,", "1,7"},
		"a range of one":           {"80-80", "80"},
		"overlaps and repetitions": {"5-9,1-6,7,7", "1-9"},
		"every port":               {"1-65535", "1-65535"},
		"leading zeros":            {"00007,00080-00090", "7,80-90"},
		"leading blank or plus":    {" 7,+9, 10- 12,+13-+14", "7,9-14"},
		"blank before five digits": {"1, 54321, 54323-54325", "1,54321,54323-54325"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, faults := parsePorts(tt.in)
			if len(faults) > 0 || got.String() != tt.want {
				t.Errorf("parsePorts(%q) = %v, %v, want %v", tt.in, got, faults, tt.want)
			}
		})
	}
}

// TestParsePortsFaults has PortSentry 2.0.7's words for every bad token.
func TestParsePortsFaults(t *testing.T) {
	tests := map[string]struct {
		in       string
		want     string
		upstream string
	}{
		"a word":             {"abc", `port "abc": not a number from 1 to 65535`, "Unable to extract single port: abc"},
		"port zero":          {"0", `port "0": outside 1 to 65535`, "Unable to extract single port: 0"},
		"port too high":      {"65536", `port "65536": outside 1 to 65535`, "Unable to extract single port: 65536"},
		"six digits":         {"000001", `port "000001": outside 1 to 65535`, "Unable to extract single port: 000001"},
		"trailing blank":     {"1 ", `port "1 ": not a number from 1 to 65535`, "Unable to extract single port: 1 "},
		"two leading blanks": {"  1", `port "  1": not a number from 1 to 65535`, "Unable to extract single port:   1"},
		"only a blank":       {" ", `port " ": missing`, "Unable to extract single port:  "},
		"no start":           {"-5", `port range "-5": start is missing`, "Unable to extract port range start: -5"},
		"start zero":         {"0-5", `port range "0-5": start is outside 1 to 65535`, "Unable to extract port range start: 0-5"},
		"no end":             {"1-", `port range "1-": end is missing`, "Unable to extract port range end: 1-"},
		"end too high":       {"1-70000", `port range "1-70000": end is outside 1 to 65535`, "Unable to extract port range end: 1-70000"},
		"three numbers":      {"1-2-3", `port range "1-2-3": end is not a number from 1 to 65535`, "Unable to extract port range end: 1-2-3"},
		"start above end": {
			"90-80", `port range "90-80": start is above end`,
			"Invalid port range: 90-80, start port must be less than or equal to end port",
		},
		"twelve characters":        {"123456-12345", `port range "123456-12345": too long; separate ports by commas`, "Invalid port range: 123456-12345"},
		"blanks instead of commas": {"1 7 9 11 15 70", `port "1 7 9 11 15 70": too long; separate ports by commas`, "Invalid port range: 1 7 9 11 15 70"},
		"a minus that is no dash":  {"80–90", `port "80–90": not a number from 1 to 65535`, "Unable to extract single port: 80–90"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, faults := parsePorts(tt.in)
			want := Faults{{Text: tt.want, Upstream: tt.upstream}}
			if diff := cmp.Diff(want, faults); diff != "" {
				t.Errorf("parsePorts(%q): faults (-want +got):\n%s", tt.in, diff)
			}
		})
	}
}

func TestParsePortsCollectsEveryBadToken(t *testing.T) {
	if _, faults := parsePorts("x,1,0,2-1"); len(faults) != 3 {
		t.Errorf("parsePorts found %d faults, want 3:\n%v", len(faults), faults)
	}
	if _, faults := parsePorts(strings.Repeat("x,", 10*maxFindings)); len(faults) != maxFindings {
		t.Errorf("parsePorts found %d faults, want no more than %d", len(faults), maxFindings)
	}
}

func FuzzParsePorts(f *testing.F) {
	for _, seed := range []string{"", "80", "1,7,512-515", " 7,+9", "00001-65535", "90-80", "1-", "x", "1-65535,,"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ports, faults := parsePorts(s)
		if len(faults) > 0 {
			return
		}
		again, faults := parsePorts(ports.String())
		if len(faults) > 0 || again.String() != ports.String() {
			t.Fatalf("%q -> %v -> %v, %v", s, ports, again, faults)
		}
		if ports.Contains(0) {
			t.Fatalf("%q has port 0", s)
		}
	})
}
