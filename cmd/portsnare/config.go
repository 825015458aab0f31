package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/portsnare/portsnare/parsers/conf"
)

const dialects = `A file whose name ends in .toml is in the native form; any other is read as
PortSentry 2 does (KEY="value").`

func newConfig() *cobra.Command {
	config := &cobra.Command{
		Use:   "config",
		Short: "Check and convert configuration files",
		Long:  "Check and convert configuration files.\n\n" + dialects,
		Args:  cobra.NoArgs,
		RunE:  showHelp,
	}
	config.AddCommand(newConfigCheck(), newConfigConvert(), newConfigDefault())
	return config
}

func newConfigCheck() *cobra.Command {
	var asJSON bool
	check := &cobra.Command{
		Use:   "check FILE...",
		Short: "Report every fault in configuration files",
		Long: `Read configuration files, and the ignore files that they name, as the daemon
would. For each file without faults "FILE: ok" is printed on standard output;
faults and warnings go to standard error, one a line, with file, line and key.

` + dialects + `

The exit status is 0 if all files are usable, with or without warnings, 1 if
one has a fault, and 2 if the command line is not understood.`,
		Example: `  portsnare config check /etc/portsnare/portsnare.toml
  portsnare config check --json /etc/portsentry/portsentry.conf`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, files []string) error {
			show := printReport
			if asJSON {
				show = printJSONReport
			}
			return check(files, show, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	check.Flags().BoolVar(&asJSON, "json", false, "print one JSON object per file on standard output, with its faults and warnings")
	return check
}

// convertOptions choose the dialect of the file to convert.
type convertOptions struct {
	modes          []conf.ModeWord
	debianDefaults string
}

func newConfigConvert() *cobra.Command {
	var o convertOptions
	convert := &cobra.Command{
		Use:   "convert FILE",
		Short: "Print a configuration in the native form",
		Long: `Print a configuration in the native form (TOML) on standard output. No key is
lost: those that this release does not act on yet are converted too, with a
warning on standard error.

` + dialects + `

PortSentry takes interfaces and log outputs from its command line. What it does
without options is converted; where yours gives others, edit the result.

A file of PortSentry 1.2 means something only together with the modes that the
program is started in. With --modes or --debian-defaults, FILE is read as
PortSentry 1.2 reads it.`,
		Example: `  portsnare config convert /etc/portsentry/portsentry.conf >portsnare.toml
  portsnare config convert --modes tcp,sudp portsentry.conf
  portsnare config convert --debian-defaults /etc/default/portsentry portsentry.conf`,
		Args: o.check,
		RunE: func(cmd *cobra.Command, files []string) error {
			c, warnings, err := o.load(files[0])
			for _, w := range warnings {
				fmt.Fprintln(cmd.ErrOrStderr(), "warning:", w)
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(c.AppendNative(nil))
			return err
		},
	}
	convert.Flags().Func("modes", "the modes PortSentry 1.2 is started in: a `LIST` of tcp, stcp or atcp, and udp, sudp or audp", func(list string) (err error) {
		o.modes, err = conf.ParseModeWords(list)
		return err
	})
	convert.Flags().StringVar(&o.debianDefaults, "debian-defaults", "", "take these modes from TCP_MODE and UDP_MODE in `FILE`, Debian's /etc/default/portsentry")
	return convert
}

// check returns an error unless the options and files fit together.
func (o *convertOptions) check(cmd *cobra.Command, files []string) error {
	if err := cobra.ExactArgs(1)(cmd, files); err != nil {
		return err
	}
	byModes, byDefaults := cmd.Flags().Changed("modes"), cmd.Flags().Changed("debian-defaults")
	switch {
	case byDefaults && o.debianDefaults == "":
		return errors.New("--debian-defaults needs the name of a file")
	case byModes && byDefaults:
		return errors.New("--modes and --debian-defaults exclude each other")
	case (byModes || byDefaults) && strings.HasSuffix(files[0], ".toml"):
		return fmt.Errorf("--modes and --debian-defaults are for files of PortSentry 1.2; %s is native", files[0])
	}
	return nil
}

// load reads file in the dialect that the options choose.
func (o *convertOptions) load(file string) (conf.Config, []conf.Warning, error) {
	modes, ofModes := o.modes, []conf.Warning(nil)
	if o.debianDefaults != "" {
		var err error
		if modes, ofModes, err = conf.LoadDebianDefaults(o.debianDefaults); err != nil {
			return conf.Config{}, ofModes, err
		}
	}
	if modes == nil {
		return conf.Load(file)
	}
	c, warnings, err := conf.LoadPortSentry1(file, modes...)
	return c, append(ofModes, warnings...), err
}

func newConfigDefault() *cobra.Command {
	return &cobra.Command{
		Use:     "default",
		Short:   "Print the configuration that is in force without a file",
		Long:    "Print the configuration that is in force without a file, with comments: a file\nto start from.",
		Example: `  portsnare config default >portsnare.toml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := io.WriteString(cmd.OutOrStdout(), conf.DefaultNative())
			return err
		},
	}
}

// A report is what was found about one configuration file.
type report struct {
	File     string         `json:"file"`
	OK       bool           `json:"ok"`
	Faults   conf.Faults    `json:"faults,omitempty"`
	Warnings []conf.Warning `json:"warnings,omitempty"`
}

// errReported says that the faults have been printed already.
var errReported = errors.New("faults reported")

// check shows the report on every file. It returns errReported if one has a fault.
func check(files []string, show func(report, io.Writer, io.Writer) error, stdout, stderr io.Writer) error {
	var faulty error
	for _, file := range files {
		r := examine(file)
		if !r.OK {
			faulty = errReported
		}
		if err := show(r, stdout, stderr); err != nil {
			return fmt.Errorf("print the report on %s: %w", file, err)
		}
	}
	return faulty
}

// examine reads a configuration file and the ignore files that it names.
func examine(file string) report {
	r := report{File: file}
	c, warnings, err := conf.Load(file)
	if err == nil {
		var ofIgnore []conf.Warning
		_, ofIgnore, err = conf.LoadIgnore(c.Detect.Ignore...)
		warnings = append(warnings, ofIgnore...)
	}
	r.OK = err == nil
	r.Warnings = warnings
	errors.As(err, &r.Faults)
	return r
}

func printReport(r report, stdout, stderr io.Writer) error {
	for _, w := range r.Warnings {
		if _, err := fmt.Fprintln(stderr, "warning:", w); err != nil {
			return err
		}
	}
	if !r.OK {
		_, err := fmt.Fprintln(stderr, r.Faults)
		return err
	}
	_, err := fmt.Fprintf(stdout, "%s: ok\n", r.File)
	return err
}

func printJSONReport(r report, stdout, _ io.Writer) error {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return err
	}
	_, err := io.WriteString(stdout, b.String())
	return err
}
