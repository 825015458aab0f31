package cmdline

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/portsnare/portsnare/parsers/conf"
)

func TestParsePortSentry2(t *testing.T) {
	type fields = func(*PortSentry2)
	all := func(c *PortSentry2) { c.Interfaces = []string{conf.AllInterfaces} }
	names := func(names ...string) fields { return func(c *PortSentry2) { c.Interfaces = names } }
	debugVerbose := func(c *PortSentry2) { c.Debug, c.Verbose = true, true }
	daemon := func(c *PortSentry2) { c.Daemon, c.Stdout, c.Syslog = true, false, true }
	both := func(c *PortSentry2) { c.Stdout, c.Syslog = true, true }
	syslog := func(c *PortSentry2) { c.Stdout, c.Syslog = false, true }
	trap := func(c *PortSentry2) { c.Mode = conf.Trap }
	raw := func(c *PortSentry2) { c.Method, c.Interfaces = Raw, []string{conf.AllInterfaces} }
	file := func(path string) fields { return func(c *PortSentry2) { c.ConfigFile = path } }
	longestPath := strings.Repeat("p", maxPath)

	tests := map[string]struct {
		args []string
		want fields // what differs from the defaults; nil: nothing
	}{
		"nothing":                    {nil, nil},
		"stealth":                    {[]string{"--stealth"}, nil},
		"connect":                    {[]string{"--connect"}, trap},
		"interface":                  {[]string{"-i", "eth0"}, names("eth0")},
		"interface, long":            {[]string{"--interface", "eth0"}, names("eth0")},
		"two interfaces":             {[]string{"-i", "eth0", "-i", "eth1"}, names("eth0", "eth1")},
		"the same interface twice":   {[]string{"-i", "eth0", "-i", "eth0"}, names("eth0")},
		"interface of 15 characters": {[]string{"-i", "abcdefghijklmno"}, names("abcdefghijklmno")},
		"ALL":                        {[]string{"-i", "ALL"}, all},
		"ALL twice":                  {[]string{"-i", "ALL", "-i", "ALL"}, all},
		"any":                        {[]string{"-i", "any"}, all},
		"ALL and any":                {[]string{"-i", "ALL", "-i", "any"}, all},
		"ALL_NLO":                    {[]string{"-i", "ALL_NLO"}, nil},
		"method pcap":                {[]string{"-m", "pcap"}, nil},
		"method raw":                 {[]string{"-m", "raw"}, raw},
		"method, long":               {[]string{"--method=raw"}, raw},
		"method with more to it":     {[]string{"-m", "rawest"}, raw},
		"the last method counts":     {[]string{"-m", "raw", "-m", "pcap"}, nil},
		"raw leaves out -i":          {[]string{"-i", "eth0", "-m", "raw"}, raw},
		"raw leaves out a later -i":  {[]string{"-m", "raw", "-i", "eth0"}, raw},
		"connect takes -i":           {[]string{"--connect", "-i", "eth0"}, func(c *PortSentry2) { trap(c); names("eth0")(c) }},
		"stdout":                     {[]string{"-l", "stdout"}, nil},
		"syslog":                     {[]string{"-l", "syslog"}, syslog},
		"both outputs":               {[]string{"-l", "syslog", "--logoutput", "stdout"}, both},
		"configuration":              {[]string{"-c", "p.conf"}, file("p.conf")},
		"configuration, long":        {[]string{"--configfile=p.conf"}, file("p.conf")},
		"no name of a configuration": {[]string{"-c", ""}, file("")},
		"longest path":               {[]string{"-c", longestPath}, file(longestPath)},
		"daemon":                     {[]string{"-D"}, daemon},
		"daemon, long":               {[]string{"--daemon"}, daemon},
		"daemon before stdout":       {[]string{"-D", "-l", "stdout"}, daemon},
		"daemon after stdout":        {[]string{"-l", "stdout", "-D"}, daemon},
		"no local check":             {[]string{"-L"}, func(c *PortSentry2) { c.SkipLocalCheck = true }},
		"no local check, long":       {[]string{"--disable-local-check"}, func(c *PortSentry2) { c.SkipLocalCheck = true }},
		"no service check":           {[]string{"-S"}, func(c *PortSentry2) { c.SkipServiceCheck = true }},
		"no service check, long":     {[]string{"--disable-service-check"}, func(c *PortSentry2) { c.SkipServiceCheck = true }},
		"debug and verbose":          {[]string{"-d", "-v"}, debugVerbose},
		"debug and verbose, long":    {[]string{"--debug", "--verbose"}, debugVerbose},
		"help":                       {[]string{"-h"}, func(c *PortSentry2) { c.Help = true }},
		"help, long":                 {[]string{"--help"}, func(c *PortSentry2) { c.Help = true }},
		"version":                    {[]string{"-V"}, func(c *PortSentry2) { c.Version = true }},
		"version, long":              {[]string{"--version"}, func(c *PortSentry2) { c.Version = true }},
		"help before a fault":        {[]string{"-h", "-x"}, func(c *PortSentry2) { c.Help = true }},
		"version before help":        {[]string{"-V", "-h"}, func(c *PortSentry2) { c.Version = true }},
		"help in a bundle":           {[]string{"-dhx"}, func(c *PortSentry2) { c.Debug, c.Help = true, true }},

		"bundle":                        {[]string{"-dv"}, debugVerbose},
		"bundle that ends in a value":   {[]string{"-dvieth0"}, func(c *PortSentry2) { debugVerbose(c); names("eth0")(c) }},
		"bundle before a value":         {[]string{"-dvi", "eth0"}, func(c *PortSentry2) { debugVerbose(c); names("eth0")(c) }},
		"attached value":                {[]string{"-mraw"}, raw},
		"attached value that has an =":  {[]string{"-c=x"}, file("=x")},
		"value that looks like options": {[]string{"-c", "-dv"}, file("-dv")},
		"value --":                      {[]string{"--configfile", "--", "-d"}, func(c *PortSentry2) { file("--")(c); c.Debug = true }},
		"value with an =":               {[]string{"--configfile=a=b"}, file("a=b")},
		"empty long value":              {[]string{"--configfile="}, file("")},
		"abbreviation":                  {[]string{"--conn"}, trap},
		"abbreviation with a value":     {[]string{"--m=raw"}, raw},
		"shortest abbreviation":         {[]string{"--st", "--verb", "--deb"}, debugVerbose},
		"arguments between":             {[]string{"a", "-d", "b", "-v", "c"}, debugVerbose},
		"a lone dash":                   {[]string{"-", "-d", "-v"}, debugVerbose},
		"end of options":                {[]string{"-d", "-v", "--", "-x", "--connect"}, debugVerbose},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			want := PortSentry2{
				Mode: conf.Stealth, Interfaces: []string{conf.AllButLoopback}, Method: Pcap, Stdout: true, ConfigFile: DefaultConfigFile,
			}
			if tt.want != nil {
				tt.want(&want)
			}
			got, err := ParsePortSentry2("portsentry", tt.args)
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("ParsePortSentry2(%q): %v (-want +got):\n%s", tt.args, err, diff)
			}
		})
	}
}

func TestParsePortSentry2Faults(t *testing.T) {
	const (
		unknown = "Unknown argument, getopt returned character code 077"
		mode    = "Error: Only one mode can be specified, Use only one of --stealth or --connect"
		mixed   = "Error: Only one interface type can be specified (ALL, ALL_NLO or interfaces)"
		output  = "Error: Invalid log output specified"
		method  = "Error: Invalid sentry method specified"
	)
	tests := map[string]struct {
		args   []string
		stderr string
		stdout string
	}{
		"both modes":               {[]string{"--stealth", "--connect"}, mode, ""},
		"the same mode twice":      {[]string{"--connect", "--conn"}, mode, ""},
		"an interface and ALL":     {[]string{"-i", "eth0", "-i", "ALL"}, mixed, ""},
		"ALL and an interface":     {[]string{"-i", "any", "-i", "eth0"}, mixed, ""},
		"ALL and ALL_NLO":          {[]string{"-i", "ALL", "-i", "ALL_NLO"}, mixed, ""},
		"interface of 16":          {[]string{"-i", "abcdefghijklmnop"}, "Error: Interface name abcdefghijklmnop too long", ""},
		"method":                   {[]string{"-m", "pca"}, method, ""},
		"method in capitals":       {[]string{"--method=RAW"}, method, ""},
		"log output":               {[]string{"-l", "file"}, output, ""},
		"log output, cut short":    {[]string{"-l", "sys"}, output, ""},
		"log output, and more":     {[]string{"-l", "syslog2"}, output, ""},
		"path":                     {[]string{"-c", strings.Repeat("p", maxPath+1)}, "Error: Config file path too long", ""},
		"fault before help":        {[]string{"-x", "-h"}, "portsentry: invalid option -- 'x'", unknown},
		"unknown letter":           {[]string{"-x"}, "portsentry: invalid option -- 'x'", unknown},
		"unknown letter in bundle": {[]string{"-dx"}, "portsentry: invalid option -- 'x'", unknown},
		"colon":                    {[]string{"-:"}, "portsentry: invalid option -- ':'", unknown},
		"unknown name":             {[]string{"--foo"}, "portsentry: unrecognized option '--foo'", unknown},
		"unknown name with value":  {[]string{"--foo=bar"}, "portsentry: unrecognized option '--foo=bar'", unknown},
		"letter as a name":         {[]string{"--D"}, "portsentry: unrecognized option '--D'", unknown},
		"ambiguous name": {
			[]string{"--disable"},
			"portsentry: option '--disable' is ambiguous; possibilities: '--disable-local-check' '--disable-service-check'", unknown,
		},
		"ambiguous with a value": {
			[]string{"--ver=1"}, "portsentry: option '--ver=1' is ambiguous; possibilities: '--verbose' '--version'", unknown,
		},
		"unwanted value":         {[]string{"--deb=1"}, "portsentry: option '--debug' doesn't allow an argument", unknown},
		"empty unwanted value":   {[]string{"--help="}, "portsentry: option '--help' doesn't allow an argument", unknown},
		"missing value":          {[]string{"-i"}, "portsentry: option requires an argument -- 'i'", unknown},
		"missing value, bundled": {[]string{"-dc"}, "portsentry: option requires an argument -- 'c'", unknown},
		"missing value, long":    {[]string{"--config"}, "portsentry: option '--configfile' requires an argument", unknown},
		"-t":                     {[]string{"-t", "x"}, "", "Unknown argument, getopt returned character code 0164"},
		"-s":                     {[]string{"-s", "x"}, "", "Unknown argument, getopt returned character code 0163"},
		"-a":                     {[]string{"-a", "x"}, "", "Unknown argument, getopt returned character code 0141"},
		"-u":                     {[]string{"-u", "x"}, "", "Unknown argument, getopt returned character code 0165"},
		"-t alone":               {[]string{"-t"}, "portsentry: option requires an argument -- 't'", unknown},
		"-tcp and more":          {[]string{"-tcp", "-d"}, "", "Unknown argument, getopt returned character code 0164"},
		"-sudp and more":         {[]string{"-sudp", "-d"}, "", "Unknown argument, getopt returned character code 0163"},
		"-atcp and more":         {[]string{"-d", "-atcp"}, "", "Unknown argument, getopt returned character code 0141"},
		"-udp and more":          {[]string{"-udp", "-udp"}, "", "Unknown argument, getopt returned character code 0165"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParsePortSentry2("portsentry", tt.args)
			fault, _ := errors.AsType[*Error](err)
			if diff := cmp.Diff(&Error{Stderr: tt.stderr, Stdout: tt.stdout}, fault); diff != "" {
				t.Errorf("ParsePortSentry2(%q) = %+v, %v (-want +got):\n%s", tt.args, got, err, diff)
			}
			if err != nil && err.Error() == "" {
				t.Error("an error without words")
			}
		})
	}
}

// TestEmptyName cuts every name short to nothing.
func TestEmptyName(t *testing.T) {
	_, err := ParsePortSentry2("portsentry", []string{"--="})
	fault, _ := errors.AsType[*Error](err)
	if fault == nil || strings.Count(fault.Stderr, " '--") != len(longNames())+1 {
		t.Errorf("ParsePortSentry2(--=) = %v, want an ambiguity of %q", err, longNames())
	}
}

func TestParsePortSentry1(t *testing.T) {
	tests := map[string]struct {
		args []string
		want conf.ModeWord // empty: no command line of PortSentry 1.2
	}{
		"tcp":           {[]string{"-tcp"}, "tcp"},
		"udp":           {[]string{"-udp"}, "udp"},
		"stcp":          {[]string{"-stcp"}, "stcp"},
		"sudp":          {[]string{"-sudp"}, "sudp"},
		"atcp":          {[]string{"-atcp"}, "atcp"},
		"audp":          {[]string{"-audp"}, "audp"},
		"nothing":       {nil, ""},
		"two words":     {[]string{"-tcp", "-udp"}, ""},
		"a list":        {[]string{"-tcp,udp"}, ""},
		"no dash":       {[]string{"tcp"}, ""},
		"two dashes":    {[]string{"--tcp"}, ""},
		"capitals":      {[]string{"-TCP"}, ""},
		"a dash":        {[]string{"-"}, ""},
		"empty":         {[]string{""}, ""},
		"PortSentry 2":  {[]string{"--stealth"}, ""},
		"help":          {[]string{"--help"}, ""},
		"trailing text": {[]string{"-tcp "}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := ParsePortSentry1(tt.args)
			if got != tt.want || ok != (tt.want != "") {
				t.Errorf("ParsePortSentry1(%q) = %q, %v, want %q", tt.args, got, ok, tt.want)
			}
			if !ok {
				return
			}
			if _, err := ParsePortSentry2("portsentry", tt.args); err == nil {
				t.Errorf("PortSentry 2 takes %q too", tt.args)
			}
		})
	}
}

// TestUsage makes sure that the usage leaves out no option and fits a terminal.
func TestUsage(t *testing.T) {
	usage := Usage("portsentry")
	var want []string
	for _, o := range portSentry2Options {
		switch {
		case o.long == "":
		case o.short == 0:
			want = append(want, "\n      --"+o.long)
		default:
			want = append(want, "\n  -"+string(o.short)+", --"+o.long)
		}
	}
	for _, words := range []string{"-tcp, -udp", "-stcp, -sudp", "-atcp, -audp"} {
		want = append(want, "\n  "+words+" ")
	}
	for _, text := range want {
		if !strings.Contains(usage, text) {
			t.Errorf("no %q in the usage", text)
		}
	}
	for line := range strings.Lines(usage) {
		if len(line) > 81 {
			t.Errorf("%q is wider than a terminal", line)
		}
	}
}

func longNames() []string {
	var names []string
	for _, o := range portSentry2Options {
		if o.long != "" {
			names = append(names, o.long)
		}
	}
	return names
}

func FuzzParsePortSentry2(f *testing.F) {
	for _, seed := range []string{
		"", "-dv -mraw", "--interface eth0 --interface=eth1", "-i ALL -i any", "--conn -- -x", "-c", "--dis", "-", "--=", "-t x", "a -D -l stdout",
	} {
		f.Add(strings.ReplaceAll(seed, " ", "\n"))
	}
	f.Fuzz(func(t *testing.T, lines string) {
		args := strings.Split(lines, "\n")
		before := slices.Clone(args)
		c, err := ParsePortSentry2("portsentry", args)
		again, errAgain := ParsePortSentry2("portsentry", args)
		if !slices.Equal(args, before) || cmp.Diff(c, again) != "" || cmp.Diff(err, errAgain) != "" {
			t.Fatalf("%q was read as %+v, %v and then as %+v, %v", before, c, err, again, errAgain)
		}
		if err != nil {
			if fault, ok := errors.AsType[*Error](err); !ok || fault.Error() == "" {
				t.Fatalf("%q: %v is no error with words", args, err)
			}
			return
		}
		if !c.Stdout && !c.Syslog || len(c.Interfaces) == 0 || c.Mode == "" || c.Method == "" {
			t.Fatalf("%q: %+v lacks a default", args, c)
		}
		if _, both := ParsePortSentry1(args); both {
			t.Fatalf("%q is a command line of both", args)
		}
	})
}
