package logline

import (
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

// Logwatch's script for PortSentry counts the golden scans. The other lines it
// does not know, whoever writes them.
func TestLogwatchReadsAlerts(t *testing.T) {
	const dir = "/usr/share/logwatch"
	cmd := exec.CommandContext(t.Context(), "perl", "-I", dir+"/lib", dir+"/scripts/services/portsentry")
	cmd.Env = append(os.Environ(), "LOGWATCH_NUMERIC=1", "LOGWATCH_DETAIL_LEVEL=10")
	lines := syslogLines(t)
	cmd.Stdin = strings.NewReader(strings.Join(lines, ""))
	report, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v: apt-get install logwatch\n%s", cmd, err, report)
	}
	scans, unmatched, _ := strings.Cut(string(report), "**Unmatched entries**\n")
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

// preludeRules returns the rules of Prelude-LML for who scanned and who
// connected. Their expressions mean the same in Go.
func preludeRules(t *testing.T) (scan, connect *regexp.Regexp) {
	t.Helper()
	const file = "/etc/prelude-lml/ruleset/portsentry.rules"
	rules, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v: apt-get install prelude-lml-rules", err)
	}
	for _, rule := range regexp.MustCompile(`(?m)^regex=(.*); \\$`).FindAllSubmatch(rules, -1) {
		switch text := string(rule[1]); {
		case strings.Contains(text, "scan from"):
			scan = regexp.MustCompile(text)
		case strings.Contains(text, "Connect from"):
			connect = regexp.MustCompile(text)
		}
	}
	if scan == nil || connect == nil {
		t.Fatalf("%s has no rule for a scan or none for a connection", file)
	}
	return scan, connect
}

// Prelude-LML's rules and the decoder of OSSEC and Wazuh find the source and
// the port in every golden alert that they have a pattern for.
func TestRulesReadAlerts(t *testing.T) {
	scan, connect := preludeRules(t)
	// OSSEC and Wazuh have one for connections alone, in a language of their
	// own. They take the host for the address.
	decoder := regexp.MustCompile(`attackalert: Connect from host: (\S+)/\S+ to (\S+) port: (\d+)$`)
	for i := range goldenAlerts {
		a := &goldenAlerts[i]
		first := string(a.Append(nil))
		want := reading{a.Source.String(), a.Proto.String(), strconv.Itoa(int(a.Port))}
		prelude, ossec := scan, (*regexp.Regexp)(nil)
		switch a.Technique {
		case detector.TechniqueOddFlags:
			continue // has no "scan": nobody has a pattern for it
		case detector.TechniqueConnect:
			prelude, ossec = connect, decoder
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
