package logline

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/detector"
)

// goldenAlerts make testdata/alert.golden.
var goldenAlerts = []Alert{
	// The examples of the compatibility specification, with addresses of ours.
	{Source: v4, Host: "attacker.example.org", Proto: detector.TCP, Port: 101, Technique: detector.TechniqueSYN},
	{Source: v4, Proto: detector.TCP, Port: 11, Technique: detector.TechniqueFIN},
	{Source: v4, Proto: detector.TCP, Port: 11, Technique: detector.TechniqueNULL},
	{Source: v4, Proto: detector.TCP, Port: 11, Technique: detector.TechniqueXMAS},
	{Source: v4, Proto: detector.TCP, Port: 11, Technique: detector.TechniqueOddFlags, Flags: detector.SYN | detector.FIN},
	{Source: v4, Proto: detector.UDP, Port: 7, Technique: detector.TechniqueUDP},
	{Source: v4, Proto: detector.TCP, Port: 111, Technique: detector.TechniqueConnect},
	{Source: v4, Proto: detector.UDP, Port: 111, Technique: detector.TechniqueConnect},
	// What PortSentry 1.2 did not know.
	{Source: v6, Proto: detector.TCP, Port: 65535, Technique: detector.TechniqueSYN},
	{Source: v6, Proto: detector.UDP, Port: 1, Technique: detector.TechniqueConnect},
	// A name that wants somebody else reported.
	{Source: v4, Host: "x/198.51.100.66 to TCP port: 1\nattackalert: UDP scan from host: x", Proto: detector.TCP, Port: 11, Technique: detector.TechniqueSYN},
}

func TestAlertGolden(t *testing.T) {
	var lines []byte
	for i := range goldenAlerts {
		lines = append(goldenAlerts[i].Append(lines), '\n')
	}
	checkGolden(t, "alert.golden", string(lines))
}

// syslogLines returns the golden lines as a syslog daemon writes them.
func syslogLines(t *testing.T) (lines []string) {
	t.Helper()
	text, err := os.ReadFile("testdata/alert.golden")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		lines = append(lines, "Nov 22 07:44:33 host portsentry[1234]: "+line)
	}
	return lines
}

// logwatch returns the report of Logwatch's script for PortSentry.
func logwatch(t *testing.T, lines []string) string {
	t.Helper()
	const dir = "/usr/share/logwatch"
	cmd := exec.CommandContext(t.Context(), "perl", "-I", dir+"/lib", dir+"/scripts/services/portsentry")
	cmd.Env = append(os.Environ(), "LOGWATCH_NUMERIC=1", "LOGWATCH_DETAIL_LEVEL=10")
	cmd.Stdin = strings.NewReader(strings.Join(lines, ""))
	report, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: apt-get install logwatch\n%s", cmd, err, report)
	}
	return string(report)
}

// Logwatch's script for PortSentry counts the golden scans. The other lines it
// does not know, whoever writes them.
func TestLogwatchReadsAlerts(t *testing.T) {
	lines := syslogLines(t)
	report := logwatch(t, lines)
	scans, unmatched, _ := strings.Cut(report, "**Unmatched entries**\n")
	const want = `
Warning: Portscans detected
    TCP NULL from:
      203.0.113.7: ports: 11
   TCP FIN from:
      203.0.113.7: ports: 11
   TCP SYN/Normal from:
      2001:db8::7: ports: 65535
      203.0.113.7: ports: 11 101
   TCP XMAS from:
      203.0.113.7: ports: 11
   UDP from:
      203.0.113.7: ports: 7

`
	if diff := cmp.Diff(want, scans); diff != "" {
		t.Errorf("scans in Logwatch's report (-want +got)\n%s", diff)
	}
	var wantUnmatched, gotUnmatched []string
	for _, line := range lines {
		if !strings.Contains(line, " scan from host: ") {
			wantUnmatched = append(wantUnmatched, line)
		}
	}
	for line := range strings.Lines(unmatched) {
		_, line, _ = strings.Cut(line, " Time(s): ")
		gotUnmatched = append(gotUnmatched, line)
	}
	slices.Sort(wantUnmatched)
	if diff := cmp.Diff(slices.Compact(wantUnmatched), gotUnmatched); diff != "" {
		t.Errorf("unmatched in Logwatch's report (-want +got)\n%s", diff)
	}
}

// A reading is what a log reader takes from the first line of an alert.
type reading struct{ Source, Proto, Port string }

// preludeRules are the rules of Prelude-LML, by what they are about. Their
// expressions mean the same in Go.
type preludeRules struct{ scan, connect, banned, held *regexp.Regexp }

func readPreludeRules(t *testing.T) (rules preludeRules) {
	t.Helper()
	const file = "/etc/prelude-lml/ruleset/portsentry.rules"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: apt-get install prelude-lml-rules", err)
	}
	for about, rule := range map[string]**regexp.Regexp{
		"scan from": &rules.scan, "Connect from": &rules.connect, "has been blocked": &rules.banned, "already blocked": &rules.held,
	} {
		found := regexp.MustCompile(`(?m)^regex=(.*` + about + `.*); \\$`).FindSubmatch(text)
		if found == nil {
			t.Fatalf("%s has no rule for %q", file, about)
		}
		*rule = regexp.MustCompile(string(found[1]))
	}
	return rules
}

// Prelude-LML's rules and the decoder of OSSEC and Wazuh find the source and
// the port in every golden alert that they have a pattern for.
func TestRulesReadAlerts(t *testing.T) {
	rules := readPreludeRules(t)
	// OSSEC and Wazuh have one for connections alone, in a language of their
	// own. They take the host for the address.
	decoder := regexp.MustCompile(`attackalert: Connect from host: (\S+)/\S+ to (\S+) port: (\d+)$`)
	for i := range goldenAlerts {
		a := &goldenAlerts[i]
		first := string(a.Append(nil))
		want := reading{a.Source.String(), a.Proto.String(), strconv.Itoa(int(a.Port))}
		prelude, ossec := rules.scan, (*regexp.Regexp)(nil)
		switch a.Technique {
		case detector.TechniqueOddFlags:
			continue // has no "scan": nobody has a pattern for it
		case detector.TechniqueConnect:
			prelude, ossec = rules.connect, decoder
		}
		m := prelude.FindStringSubmatch(first)
		if m == nil {
			t.Errorf("Prelude-LML does not know %q", first)
			continue
		}
		if m = m[len(m)-3:]; (reading{m[0], m[1], m[2]}) != want {
			t.Errorf("Prelude-LML reads %q in %q, want %v", m, first, want)
		}
		if ossec == nil {
			continue
		}
		if m := ossec.FindStringSubmatch(first); m == nil || (reading{m[1], m[2], m[3]}) != want {
			t.Errorf("OSSEC reads %q in %q, want %v", m, first, want)
		}
	}
}

// outcomeLines returns the lines about the golden outcomes, of both generations.
func outcomeLines() (lines []string) {
	for i := range goldenOutcomes {
		for _, form := range []func([]byte, *detector.Event) []byte{PortSentry1{}.AppendLines, PortSentry2{}.AppendLines} {
			for line := range strings.Lines(string(form(nil, &goldenOutcomes[i].ev))) {
				lines = append(lines, line[1:]) // without its severity
			}
		}
	}
	return lines
}

// Prelude-LML's rules and the decoder of OSSEC and Wazuh find the source in
// every line about a ban that they have a pattern for. All outcomes are of one
// source.
func TestRulesReadBans(t *testing.T) {
	rules := readPreludeRules(t)
	decoder := regexp.MustCompile(`attackalert: Host: (\S+) is already blocked. Ignoring$`)
	seen := make(map[string]int)
	for _, line := range outcomeLines() {
		line = strings.TrimSuffix(line, "\n")
		var got, want []string
		switch {
		case strings.Contains(line, "dropped route"):
			seen["banned"]++
			got, want = rules.banned.FindStringSubmatch(line), []string{"203.0.113.7", route.Text}
		case strings.HasSuffix(line, "is already blocked. Ignoring"):
			seen["held, trap"]++
			got, want = decoder.FindStringSubmatch(line), []string{"203.0.113.7"}
		case strings.Contains(line, "is already blocked"):
			seen["held"]++
			host, _, _ := strings.Cut(strings.TrimPrefix(line, "attackalert: Host: "), "/")
			got, want = rules.held.FindStringSubmatch(line), []string{host, "203.0.113.7"}
		default:
			continue
		}
		if len(got) == 0 || !slices.Equal(got[1:], want) {
			t.Errorf("%q is read as %q, want %q", line, got, want)
		}
	}
	if want := map[string]int{"banned": 2, "held": 3, "held, trap": 1}; !maps.Equal(seen, want) {
		t.Errorf("lines by kind: %v, want %v", seen, want)
	}
}

// Logwatch's script counts every ban, and takes no line about one for one that it
// does not know.
func TestLogwatchCountsBans(t *testing.T) {
	var lines []string
	bans := 0
	for _, line := range outcomeLines() {
		if strings.Contains(line, "has been blocked") {
			bans++
		}
		lines = append(lines, "Nov 22 07:44:33 host portsentry[1234]: "+line)
	}
	known, unmatched, _ := strings.Cut(logwatch(t, lines), "**Unmatched entries**\n")
	if want := fmt.Sprintf("Warning: Blocked route from/to 203.0.113.7 %d times(s).\n", bans); bans == 0 || !strings.Contains(known, want) {
		t.Errorf("Logwatch reports\n%s, want %s", known, want)
	}
	for line := range strings.Lines(unmatched) {
		if strings.Contains(line, "blocked via") || strings.Contains(line, "already blocked") {
			t.Errorf("Logwatch does not know %q", line)
		}
	}
}

func TestParseAlertReadsWhatWePrint(t *testing.T) {
	for _, want := range goldenAlerts {
		if strings.Contains(want.Host, "\n") {
			continue // does not come back: see the golden file
		}
		line := string(want.Append(nil))
		got, err := ParseAlert(line)
		if err != nil || got != want {
			t.Errorf("ParseAlert(%q) = %+v, %v; want %+v", line, got, err, want)
		}
	}
}

func TestParseAlertRefuses(t *testing.T) {
	const good = "attackalert: TCP SYN/Normal scan from host: scanner.example.net/203.0.113.7 to TCP port: 11"
	if _, err := ParseAlert(good); err != nil {
		t.Fatalf("ParseAlert(%q): %v", good, err)
	}
	tests := map[string]struct{ old, replacement string }{
		"nothing":                      {good, ""},
		"text before":                  {"attackalert", " attackalert"},
		"text after":                   {"port: 11", "port: 11 "},
		"a newline":                    {"port: 11", "port: 11\n"},
		"an unknown type":              {"TCP SYN/Normal scan", "TCP ACK scan"},
		"PortSentry 2's NULL":          {"TCP SYN/Normal scan", "TCP NULL scan"},
		"PortSentry 2's UDP":           {"TCP SYN/Normal scan", "UDP"},
		"a type of the other protocol": {"TCP SYN/Normal scan", "UDP scan"},
		"no host":                      {"scanner.example.net", ""},
		"a host that forges a field":   {"scanner.example.net", "x/198.51.100.66 to TCP port: 1"},
		"no address":                   {"/203.0.113.7", "/scanner"},
		"a zone":                       {"/203.0.113.7", "/fe80::1%eth0"},
		"port zero":                    {"port: 11", "port: 0"},
		"port with a leading zero":     {"port: 11", "port: 011"},
		"no port":                      {"port: 11", "port: "},
		"another protocol":             {"TCP port: 11", "SCTP port: 11"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			line := strings.Replace(good, test.old, test.replacement, 1)
			if a, err := ParseAlert(line); err == nil {
				t.Errorf("ParseAlert(%q) = %+v, want an error", line, a)
			}
		})
	}
}

func FuzzAppendAlert(f *testing.F) {
	for _, a := range goldenAlerts {
		f.Add(a.Source.AsSlice(), a.Host, a.Port, uint8(a.Technique), uint8(a.Flags))
	}
	f.Fuzz(func(t *testing.T, addr []byte, host string, port uint16, technique, flags uint8) {
		source, ok := netip.AddrFromSlice(addr)
		if !ok || port == 0 {
			return
		}
		ev := probe(source, detector.TCP, port, detector.Technique(technique))
		ev.Probe.Header.Flags = detector.TCPFlags(flags)
		if ev.Probe.Technique == detector.TechniqueUDP {
			ev.Probe.Proto = detector.UDP
		}
		ev.Host = host
		want := alertOf(&ev)

		line := string(want.Append(nil))
		got, err := ParseAlert(line)
		if err != nil {
			t.Fatalf("ParseAlert(%q): %v", line, err)
		}
		if again := string(got.Append(nil)); again != line {
			t.Fatalf("%q, parsed and formatted: %q", line, again)
		}
		// A name in another alphabet does not come back.
		got.Host, want.Host = "", ""
		if got != want {
			t.Fatalf("ParseAlert(%q) = %+v, want %+v", line, got, want)
		}
	})
}

func FuzzParseAlert(f *testing.F) {
	for i := range goldenAlerts {
		f.Add(string(goldenAlerts[i].Append(nil)))
	}
	f.Fuzz(func(t *testing.T, line string) {
		a, err := ParseAlert(line)
		if err != nil {
			return
		}
		if again := string(a.Append(nil)); again != line {
			t.Fatalf("ParseAlert(%q) = %+v, formatted: %q", line, a, again)
		}
	})
}
