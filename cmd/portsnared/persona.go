package main

import (
	"errors"
	"io"

	"github.com/sirupsen/logrus"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture"
	"github.com/portsnare/portsnare/internal/version"
	"github.com/portsnare/portsnare/outputs/portsentrylog"
	"github.com/portsnare/portsnare/outputs/runcmd"
	"github.com/portsnare/portsnare/parsers/conf"
)

// A persona is how the daemon presents itself: as Portsnare, or as one of the
// generations of PortSentry.
type persona struct {
	log        *logrus.Entry
	out, fault *printer // standard output, and where errors are printed

	warn       func(warnings ...conf.Warning)                                    // of what may not mean what its author thinks
	load       func() (conf.Config, error)                                       // the configuration, anew each time
	loadIgnore func(paths ...string) (detector.PrefixSet, []conf.Warning, error) // whom to ignore
	form       func(cfg conf.Config) portsentrylog.Form                          // of lines
	active     func(d *daemon)                                                   // tells that everything is open
	refused    func(ports []capture.RefusedPort)                                 // tells of traps that could not be had

	mode func(*detector.Probe) runcmd.Mode // the word for $MODE$

	native     bool   // Portsnare itself: bans have an end, and modules put them in force
	configFile string // for those who ask; empty: the embedded one

	tellServices  bool // report packets that a service takes
	makeHostsDeny bool // a missing hosts.deny is made
	ignoreHangup  bool // SIGHUP does nothing
}

// watch reports probes until a signal ends it, as Portsnare.
func watch(o options, log *logrus.Entry, stdout io.Writer) error {
	out := newPrinter(stdout)
	p := persona{
		log: log, out: out, fault: out,
		native: true, configFile: o.config,
		warn:       func(warnings ...conf.Warning) { logWarnings(log, warnings) },
		load:       func() (conf.Config, error) { return loadConfig(o, log) },
		loadIgnore: conf.LoadIgnore,
		form:       lineForm,
		mode:       mode2,
		active:     (*daemon).logActive,
		refused:    func(ports []capture.RefusedPort) { logRefused(log, ports) },
	}
	cfg, err := p.load()
	if err != nil {
		return err
	}
	return errors.Join(p.watch(cfg), out.Close())
}

// logActive says what is watched.
func (d *daemon) logActive() {
	fields := logrus.Fields{"version": version.String(), "mode": d.config.Mode}
	if d.socket != nil {
		tcp, udp := d.config.Sniffed()
		fields["tcp_ports"], fields["udp_ports"] = tcp.Len(), udp.Len()
	}
	if d.traps != nil {
		tcp, udp := d.traps.Ports()
		fields["tcp_traps"], fields["udp_traps"] = tcp.Len(), udp.Len()
	}
	d.log.WithFields(fields).Info("portsnare is active")
}

// logRefused names the ports that a service has, in one warning for each
// protocol.
func logRefused(log *logrus.Entry, refused []capture.RefusedPort) {
	taken := make(map[detector.Proto][]detector.PortRange)
	for _, r := range refused {
		taken[r.Proto] = append(taken[r.Proto], detector.PortRange{First: r.Port, Last: r.Port})
	}
	for _, proto := range []detector.Proto{detector.TCP, detector.UDP} {
		if len(taken[proto]) > 0 {
			log.WithFields(logrus.Fields{"proto": proto, "ports": detector.NewPortSet(taken[proto]...)}).
				Warn("trap ports are in use and left to whoever has them")
		}
	}
}
